"""What responses earn: verdicts of verifiers, in processes of their own or not, and the rewards that are made of them.

    reward     verdicts, weights and overlong responses -> rewards; read this first
    verdicts   many responses and one verifier -> verdicts, whatever the verifier does
    pool       the processes: time limits, replacement, their end
    worker     what runs in one of them

The room knows no JAX, since a process that verifies must not touch the devices.
"""

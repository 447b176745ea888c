"""Several slices, and waiting for TPUs: what the scripts ask of gcloud, and what they make of half of an answer."""

import os
import shutil

import pytest

from tests.helpers import cloud as stand_in
from tests.helpers.cloud import AWKWARD, DENIED, LOCATION, TRAIN, assert_refused

checkout, cloud = stand_in.checkout, stand_in.cloud  # fixtures
pytestmark = pytest.mark.skipif(os.name != "posix" or not shutil.which("bash"), reason="the scripts need bash")

QUEUE = {"queued-resources describe"}
LOOK = [*QUEUE, "tpu-vm list"]
GONE = ("delete it first: delete.sh --name=opd --zone=us-west4-a",)


def request(state, slices=1, error=""):
  """gcloud's answer about a queued request."""
  return {"out": f"{state}|1|{slices if slices > 1 else ''}|opd|v5litepod-16|v2-alpha-tpuv5-lite|{error}\n"}


def slices(*states):
  return {"out": "".join(f"opd-{i}|{state}|4\n" for i, state in enumerate(states) if state)}


def test_create(cloud):
  result = cloud.run("create", *LOCATION, "--slices=4", "--type=v6e-32", "--spot", "--", "--network=a b")
  assert result.returncode == 0, result.stderr
  look, create = cloud.calls()
  assert look[2:7] == ["queued-resources", "describe", "opd", "--zone=us-west4-a", look[6]]
  assert create[2:6] == ["queued-resources", "create", "opd", "--zone=us-west4-a"]
  assert set(create[6:]) == {
    "--node-count=4",
    "--node-prefix=opd",
    "--runtime-version=v2-alpha-tpuv6e",
    "--accelerator-type=v6e-32",
    "--labels=opd-jax=opd",
    "--spot",
    "--network=a b",
  }


def test_create_again(cloud):
  cloud.has_slices("READY", "READY", "CREATING", "", request="PROVISIONING")
  again = cloud.run("create", *LOCATION, "--slices=4")
  assert again.returncode == 0
  state = "The queued request opd is PROVISIONING with 2 of 4 slices READY (opd-2 CREATING, opd-3 not there)"
  assert again.stderr.startswith(f"{state}: there already")
  assert_refused(cloud.run("create", *LOCATION, "--slices=2"), "has 4 slice(s), not 2", *GONE)
  cloud.has_slices("READY", "READY")
  assert "is ACTIVE with 2 of 2 slices READY: there already" in cloud.run("create", *LOCATION, "--slices=2").stderr
  assert "create" not in {call[3] for call in cloud.calls()}


@pytest.mark.parametrize(
  ("states", "state", "error", "words"),
  [
    (("READY", "READY", "", ""), "ACTIVE", "", ("ACTIVE with 2 of 4 slices READY", "opd-3 not there", "wait.sh")),
    (("READY", "READY", "", ""), "FAILED", "no more capacity", ("FAILED with 2 of 4", "(no more capacity)")),
    (("READY", "PREEMPTED", "READY", "TERMINATED"), "ACTIVE", "", ("opd-1 PREEMPTED, opd-3 TERMINATED", "come back")),
    (("", "", "", ""), "SUSPENDED", "", ("SUSPENDED with 0 of 4 slices READY",)),
  ],
)
def test_half_created_or_taken_away(cloud, checkout, states, state, error, words):
  """Half of the slices are no TPU to train on: one sentence with the remedy, and nothing is started."""
  cloud.has_slices(*states, request=state, error=error)
  assert_refused(cloud.run("create", *LOCATION, "--slices=4"), *words, *GONE)
  remedy = () if "wait.sh" in words else GONE
  for script, args in (("setup", ()), ("launch", ("--shared-workdir", *TRAIN)), ("logs", ())):
    assert_refused(cloud.run(script, *LOCATION, *args), words[0], *remedy)
  assert {verb.split()[1] for verb in cloud.verbs()} == {"describe", "list"}


def test_quota(cloud):
  message = "ERROR: (gcloud...) RESOURCE_EXHAUSTED: Quota limit 'X' has been exceeded. Limit: 16 in zone us-west4-a.\n"
  cloud.answers["queued-resources create"] = {"status": 1, "err": message}
  result = cloud.run("create", *LOCATION, "--slices=4", "--type=v6e-32")
  assert (result.returncode, message in result.stderr) == (2, True)
  assert "quota in us-west4-a does not allow 4 slices of v6e-32: ask for more" in result.stderr.splitlines()[-1]


def test_wait_for_slices(cloud):
  cloud.answers["queued-resources describe"] = [
    request("WAITING_FOR_RESOURCES", 2),
    request("WAITING_FOR_RESOURCES", 2),
    DENIED,  # which may happen once it has worked
    request("PROVISIONING", 2),
    request("ACTIVE", 2),
  ]
  cloud.answers["tpu-vm list"] = [slices(), slices(), slices("READY", "CREATING"), slices("READY", "READY")]
  result = cloud.run("wait", *LOCATION, "--interval=0")
  assert result.returncode == 0
  assert [line.split("  ")[-1] for line in result.stdout.splitlines()] == [
    "The queued request opd is WAITING_FOR_RESOURCES with 0 of 2 slices READY.",
    "The queued request opd is PROVISIONING with 1 of 2 slices READY (opd-1 CREATING).",
    "The queued request opd is ACTIVE with 2 of 2 slices READY.",
  ]


def test_wait_for_one(cloud):
  missing = {"status": 1, "err": "ERROR: NOT_FOUND"}
  ready = {"out": "READY|v5litepod-8|v2-alpha-tpuv5-lite|1|opd|opd\n"}
  cloud.answers["tpu-vm describe"] = [missing, missing, {"out": ready["out"].replace("READY", "CREATING")}, ready]
  cloud.answers["queued-resources describe"] = [request("PROVISIONING"), request("ACTIVE")]
  result = cloud.run("wait", *LOCATION, "--interval=0")
  assert result.returncode == 0
  said = [line.split(" is ")[1] for line in result.stdout.splitlines()]
  assert said == ["PROVISIONING.", "ACTIVE.", "CREATING.", "READY."]


@pytest.mark.parametrize(
  ("states", "words"),
  [
    ((request("PROVISIONING", 2), request("FAILED", 2, "no more capacity")), ("FAILED", "(no more capacity)", *GONE)),
    ((request("SUSPENDING", 2),), ("SUSPENDING", *GONE)),
    ((request("ACTIVE", 2),), ("opd-1 PREEMPTED", *GONE)),
    (({"status": 1, "err": "NOT_FOUND"},), ("There is no TPU opd in us-west4-a", "create.sh")),
  ],
)
def test_wait_ends_where_it_is_in_vain(cloud, states, words):
  cloud.answers["queued-resources describe"] = list(states)
  cloud.answers["tpu-vm list"] = slices("READY", "PREEMPTED" if "PREEMPTED" in words[0] else "CREATING")
  result = cloud.run("wait", *LOCATION, "--interval=0")
  assert (result.returncode, result.stderr.count("\n")) == (2, 1)
  assert all(word in result.stderr for word in words)
  assert len(result.stdout.splitlines()) == len(states) - 1


def test_wait_no_longer_than_the_timeout(cloud):
  cloud.has_slices("READY", "CREATING")
  result = cloud.run("wait", *LOCATION, "--timeout=1", "--interval=9")
  assert result.returncode == 124
  assert "1 of 2 slices READY (opd-1 CREATING) after 1 seconds; the same command waits on" in result.stderr
  cloud.answers["queued-resources describe"] = DENIED
  assert cloud.run("wait", *LOCATION).returncode == 7  # at once: the first question is not asked again


def test_every_slice_is_asked(cloud, checkout):
  """One ssh to all workers of each slice, all at once."""
  cloud.has_slices("READY", "READY", "READY")
  nodes = ["opd-0", "opd-1", "opd-2"]

  def asked(verb):
    calls = [call for call in cloud.calls() if call[3] == verb]
    assert all("--worker=all" in call for call in calls)
    return sorted((call[5 if verb == "scp" else 4].rstrip(":"), call[-1]) for call in calls)

  assert cloud.run("setup", *LOCATION).returncode == 0
  calls = cloud.calls()
  assert sorted(call[5] for call in calls if call[3] == "scp") == [f"{node}:" for node in nodes]
  assert sorted(call[4] for call in calls if call[3] == "ssh") == nodes
  assert [call[3] for call in calls[-6:]] == ["scp"] * 3 + ["ssh"] * 3

  assert cloud.run("launch", *LOCATION, "--shared-workdir", "--", *AWKWARD).returncode == 0
  launched = asked("ssh")
  assert [node for node, _ in launched] == nodes
  assert len({command for _, command in launched}) == 1
  for flag, signal in (("--stop", "INT"), ("--save", "TERM")):
    assert cloud.run("launch", *LOCATION, flag).returncode == 0
    command = f"--command=bash opd_jax/tpu_scripts/worker.sh stop {signal}"
    assert asked("ssh") == [(node, command) for node in nodes]
  assert cloud.run("logs", *LOCATION, "--slice=2", "--worker=3").returncode == 0
  (log,) = [call for call in cloud.calls() if call[3] == "ssh"]
  assert (log[4], log[6]) == ("opd-2", "--worker=3")
  assert_refused(cloud.run("logs", *LOCATION, "--slice=3"), "--slice=3", "3 slice(s)")
  assert_refused(cloud.run("launch", *LOCATION, *TRAIN), "--workdir=runs/popd", "several workers", "gs://")


def test_a_slice_that_fails_is_the_status_of_the_script(cloud):
  cloud.has_slices("READY", "READY")
  cloud.answers["tpu-vm ssh"] = [{}, DENIED]
  assert cloud.run("launch", *LOCATION, "--shared-workdir", *TRAIN).returncode == 7
  assert [verb for verb in cloud.verbs() if verb not in LOOK] == ["tpu-vm describe", "tpu-vm ssh", "tpu-vm ssh"]


def test_status_asks_only_those_that_can_answer(cloud):
  cloud.has_slices("READY", "PREEMPTED", "", "READY")
  result = cloud.run("status", *LOCATION)
  assert result.returncode == 0
  assert result.stdout.splitlines() == [
    "request opd: ACTIVE",
    "opd-0: READY (v5litepod-16, 4 worker(s))",
    "opd-1: PREEMPTED",
    "opd-2: not there",
    "opd-3: READY (v5litepod-16, 4 worker(s))",
  ]
  assert sorted(call[4] for call in cloud.calls() if call[3] == "ssh") == ["opd-0", "opd-3"]
  cloud.has_slices("", "", request="FAILED", error="no more capacity")
  result = cloud.run("status", *LOCATION)
  assert (result.returncode, result.stdout.splitlines()[0]) == (0, "request opd: FAILED (no more capacity)")
  cloud.answers.clear()
  assert_refused(cloud.run("status", *LOCATION), "There is no TPU opd")


def test_delete(cloud):
  delete = ["compute", "tpus", "queued-resources", "delete", "opd", "--zone=us-west4-a", "--force", "--quiet"]
  cloud.has_slices("READY", "PREEMPTED")
  result = cloud.run("delete", *LOCATION, stdin="n\n")
  assert result.returncode == 1
  assert "with 1 of 2 slices READY (opd-1 PREEMPTED) (v5litepod-16 in us-west4-a). Delete it" in result.stderr
  assert_refused(cloud.run("delete", *LOCATION, "--yes", "--slices=4"), "has 2 slice(s), not 4", "so it is not deleted")
  assert "delete" not in {call[3] for call in cloud.calls()}
  assert cloud.run("delete", *LOCATION, "--yes", "--slices=2").returncode == 0
  assert cloud.calls()[2:] == [delete]
  cloud.has_slices("READY", "READY", label="opd,opd")
  assert cloud.run("delete", *LOCATION, "--yes").returncode == 0
  for label in ("", "opd,other", "None,opd"):
    cloud.has_slices("READY", "READY", label=label)
    assert_refused(cloud.run("delete", *LOCATION, "--yes"), "was not made by create.sh")
  assert [call[3] for call in cloud.calls()].count("delete") == 1

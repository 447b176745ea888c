"""What a run would need on devices that are not here: programs compiled for them, analysed, and what does not fit."""

"""How far to believe a result: calibration and checks."""

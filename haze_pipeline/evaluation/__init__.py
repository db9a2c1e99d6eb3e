"""How good results are: metrics, baselines, figures, reports."""

"""Quality of results: metrics, baselines, figures and reports."""

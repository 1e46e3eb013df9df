"""From records to decisions: points, laws, fits, hold-outs, forecasts, figures, report. Imports without torch, ray or hydra."""

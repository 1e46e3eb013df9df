"""One run of the study: specs, data, model, training. Needs torch, numpy and sentencepiece; never ray, mlflow or hydra."""

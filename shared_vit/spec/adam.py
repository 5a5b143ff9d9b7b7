"""Adam's constants (Kingma and Ba 2015), for both twins. Epsilon is added outside the root."""

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
ADAM_SLOTS = ("exp_avg", "exp_avg_sq")  # the first and second moments, slots of a TrainState

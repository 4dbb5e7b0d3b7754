"""What would stop or spoil a training run after hours, found in seconds from its configuration, model and devices.

Each check is a function of the composed verl configuration that returns a list of `Problem`s. None starts an engine or
loads weights.
"""

from verl_act.preflight.check import check_training
from verl_act.preflight.model import ModelShape, model_shape
from verl_act.preflight.problem import Devices, Problem, local_devices

__all__ = ["Devices", "ModelShape", "Problem", "check_training", "local_devices", "model_shape"]

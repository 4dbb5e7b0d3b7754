"""`python -m verl_act doctor`: is this installation fit for ACT, and if not, what mends it."""

from verl_act.doctor.finding import Fault, Finding, NotThere, State
from verl_act.doctor.run import CHECKS, ENGINE_CHECKS, Check, examine

__all__ = ["CHECKS", "ENGINE_CHECKS", "Check", "Fault", "Finding", "NotThere", "State", "examine"]

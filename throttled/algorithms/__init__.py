"""The pure rules, one file each with its Lua twin beside it, and the plan that binds one."""

from throttled.algorithms.plan import ALGORITHMS, Joint, Plan, make_joint, make_plan

__all__ = ["ALGORITHMS", "Joint", "Plan", "make_joint", "make_plan"]

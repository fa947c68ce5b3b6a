"""The pure rules, one file each with its Lua twin beside it, and the plan that binds one."""

from throttled.algorithms.plan import ALGORITHMS, Plan, RateLimiterType, make_plan

__all__ = ["ALGORITHMS", "Plan", "RateLimiterType", "make_plan"]

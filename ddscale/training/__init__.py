"""Training on DeepSpeed: engine, loop, checkpoints, telemetry and faults, shared by every stage that trains.

`settings`, `schedules` and `deepspeed_config` are light; the others load torch, and `engine` loads DeepSpeed.
Import from the module that owns a name, such as `ddscale.training.pretraining.pretrain`.
"""

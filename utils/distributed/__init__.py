"""Several processes: ranks and collectives, FSDP2, stop signals, exit codes.

Start at ``world.World``: rank, size, device, all-reduce. ``control`` agrees on stop and save flags
between steps, ``sharding`` applies FSDP2, ``signals`` and ``script`` start and end a process.
"""

"""Several processes: ranks and collectives, FSDP2, stop signals, exit codes.

Start at ``world.World``: rank, size, device, all-reduce, flags that all ranks agree on.
``script`` starts and ends a process, ``process_failures`` explains what other processes caused,
``launch`` joins the group of several, ``sharding`` applies FSDP2.
"""

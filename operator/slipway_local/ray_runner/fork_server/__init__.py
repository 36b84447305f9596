"""Ray's workers as forks of one process that has imported what they need.

A worker of Ray is a new Python that imports Ray twice (its set-up process, then itself) and then ray.train and torch:
seconds of CPU, in every rank and every replica, every time. Here one process of the head, the *template*
(template.py), imports all of that once and forks; a fork takes milliseconds and shares the memory.

    raylet ── starts its python ──▶ python (a shell script) ── workers ──▶ request.py ── asks ──▶ template ── forks
                                          └─ everything else ──▶ the real python  ◀── no ──┘

- The raylet takes whichever process registers under the worker's id for the worker (as it must for workers in
  containers), so request.py leaves when the fork is made.
- Whatever the template cannot do the same way is not forked but started as Ray would start it: another interpreter, a
  command prefix, an environment that the imports would have read (`template.READ_BY_IMPORTS`), or no template there.
- A template must not have threads of its own when it forks, and so imports nothing that starts any but those of
  jemalloc and OpenBLAS, which provide for forks.
- It must not touch a GPU either: CUDA does not work in a fork of a process that has counted the devices.
- The kernel shows for a fork the environment that its parent was started with. A worker is found by marks in its
  environment (slipway_local.processes), so a fork writes its own environment over that one.

Sources: CPython's multiprocessing.forkserver and Android's zygote for the idea; Ray 2.60's
_private/workers/setup_worker.py and _private/runtime_env/context.py for what a worker is started with.
"""

"""``python kill_at.py WHERE [ARGUMENTS]``: the command line, killed by SIGKILL inside one stage.

WHERE is ``ROUND/STAGE/MOMENT``, and MOMENT one of

- ``shard``: after the first shard of a stage that draws; ``second``: after the first of its second draw
- ``step``: after the third optimiser step of a training
- ``work``: after the stage wrote its files and before its manifest
- ``manifest``: between manifest and rename
- ``best``: between a decision and the link ``best``; ``prune``: after that, before old weights are deleted
"""

import os
import signal
import sys

from ssd_loop import durable, sampling, store, training
from ssd_loop.cli import main

STEP = 3


def kill():
    os.killpg(os.getpgrp(), signal.SIGKILL) if os.getpgrp() == os.getpid() else os.kill(
        os.getpid(), signal.SIGKILL
    )


def arm(where):
    wanted_round, wanted_stage, moment = where.split("/")
    current = {"hit": False}
    real_step, real_publish, real_shard = store.step, store._publish, sampling._draw_shard
    real_train, real_link, real_prune = training.train, durable.point_link, store.prune

    def at(here):
        if current["hit"] and moment == here:
            kill()

    def step(folder, *, stage, round_index, work, **rest):
        current["hit"] = (str(round_index), stage) == (wanted_round, wanted_stage)

        def watched(out):
            metrics = work(out)
            at("work")
            return metrics

        return real_step(folder, stage=stage, round_index=round_index, work=watched, **rest)

    def publish(partial, folder):
        at("manifest")
        return real_publish(partial, folder)

    def draw_shard(shard, engine, path, task):
        real_shard(shard, engine, path, task)
        at("shard")
        if "second" in path.parts:
            at("second")

    def train(config, *, on_step, **rest):
        def watched(done, total, loss):
            on_step(done, total, loss)
            if done == min(STEP, total):
                at("step")

        return real_train(config, on_step=watched, **rest)

    def point_link(*arguments):
        at("best")
        real_link(*arguments)

    def prune(*arguments):
        at("prune")
        real_prune(*arguments)

    store.step, store._publish, sampling._draw_shard = step, publish, draw_shard
    training.train, durable.point_link, store.prune = train, point_link, prune


if __name__ == "__main__":
    arm(sys.argv[1])
    sys.exit(main(sys.argv[2:]))

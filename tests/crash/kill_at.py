"""``python kill_at.py WHERE [ARGUMENTS]``: the command line, killed by SIGKILL inside one stage.

WHERE is ``ROUND/STAGE/MOMENT``. MOMENT: ``shard`` after the first shard of a drawing stage, ``work`` after
the stage wrote its files and before its manifest, ``manifest`` between manifest and rename.
"""

import os
import signal
import sys

from ssd_loop import sampling, store
from ssd_loop.cli import main


def kill():
    os.killpg(os.getpgrp(), signal.SIGKILL) if os.getpgrp() == os.getpid() else os.kill(
        os.getpid(), signal.SIGKILL
    )


def arm(where):
    wanted_round, wanted_stage, moment = where.split("/")
    current = {"hit": False}
    real_step, real_publish, real_shard = store.step, store._publish, sampling._draw_shard

    def step(folder, *, stage, round_index, work, **rest):
        current["hit"] = (str(round_index), stage) == (wanted_round, wanted_stage)

        def watched(out):
            metrics = work(out)
            if current["hit"] and moment == "work":
                kill()
            return metrics

        return real_step(folder, stage=stage, round_index=round_index, work=watched, **rest)

    def publish(partial, folder):
        if current["hit"] and moment == "manifest":
            kill()
        return real_publish(partial, folder)

    def draw_shard(*args):
        real_shard(*args)
        if current["hit"] and moment == "shard":
            kill()

    store.step, store._publish, sampling._draw_shard = step, publish, draw_shard


if __name__ == "__main__":
    arm(sys.argv[1])
    sys.exit(main(sys.argv[2:]))

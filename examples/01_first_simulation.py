"""Two policies over the same exploratory jobs on a simulated cluster: the scheduler and the policies are the daemon's.

On the command line: tierline simulate jobs exploratory --jobs 60 --gpus 8 --load 4 --policy explsched,fifo
"""

from tierline.backends.jobs.sim import uniform_nodes
from tierline.experiments import Experiment, run_all

experiment = Experiment(
    source="exploratory",  # synthetic learning curves: steep, slow, plateau, divergent; many are stopped early
    nodes=uniform_nodes(8),
    policies=("explsched", "fifo"),
    jobs=60,
    loads=(4.0,),  # the jobs ask for four times what the cluster can give while they arrive
)
for run in run_all(experiment):
    figures = run.judgement
    print(
        f"{run.policy:<10} utility {figures.utility:3.0f} of at most {run.bound:.0f},"
        f" wasted {figures.wasted_gpu_s / 60:3.0f} GPU-minutes, idle {figures.idle_gpu_s / 60:.0f}"
    )

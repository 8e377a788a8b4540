"""Train a teacher that defends itself against distillation (`method`, default "nasty": see method/defend/).

    python train_nasty.py --save_path experiments/CIFAR10/kd_nasty_resnet18/nasty_resnet18

The folder's params.json says what is trained and how. The same command goes on with an interrupted run.
"""

from utils import experiment

if __name__ == "__main__":
    experiment.main("defend", experiment.flags(__doc__).parse_args())

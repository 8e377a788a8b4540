"""Train a teacher that defends itself against distillation (`method`, default "nasty": see method/defend/).

    python train_nasty.py --save_path experiments/CIFAR10/kd_nasty_resnet18/nasty_resnet18

The folder's params.json says what is trained and how. To continue an interrupted run, repeat the command.
"""

from training import cli

if __name__ == "__main__":
    cli.main("defend", cli.training_flags(__doc__).parse_args())

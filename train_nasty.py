"""Train a teacher with a defence. The key `method` (default: "nasty") names a file in method/defend/.

    python train_nasty.py --save_path experiments/CIFAR10/kd_nasty_resnet18/nasty_resnet18

All settings are in the folder's params.json. To continue an interrupted run, repeat the command.
"""

from training import cli

if __name__ == "__main__":
    cli.main("defend", cli.training_flags(__doc__).parse_args())

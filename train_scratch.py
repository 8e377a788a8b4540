"""Train a network with cross-entropy: a baseline, a normal teacher, or an adversarial network for a nasty teacher.

    python train_scratch.py --save_path experiments/CIFAR10/baseline/resnet18

All settings are in the folder's params.json. To continue an interrupted run, repeat the command.
"""

from training import cli

if __name__ == "__main__":
    cli.main("scratch", cli.training_flags(__doc__).parse_args())

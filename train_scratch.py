"""Train a network by cross-entropy: a baseline, a normal teacher, or a nasty teacher's adversarial network.

    python train_scratch.py --save_path experiments/CIFAR10/baseline/resnet18

The folder's params.json says what is trained and how. The same command goes on with an interrupted run.
"""

from utils import experiment

if __name__ == "__main__":
    experiment.main("scratch", experiment.flags(__doc__).parse_args())

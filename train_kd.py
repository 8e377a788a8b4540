"""Train a student by distillation from a teacher. The key `method` (default: "kd") names a file in method/attack/.

    python train_kd.py --save_path experiments/CIFAR10/kd_nasty_resnet18/cnn

All settings are in the folder's params.json. To continue an interrupted run, repeat the command.
"""

from training import cli

if __name__ == "__main__":
    parser = cli.training_flags(__doc__)
    parser.add_argument(
        "--teacher_resume", metavar="FILE", help="checkpoint of the teacher, instead of the one in params.json"
    )
    cli.main("attack", parser.parse_args())

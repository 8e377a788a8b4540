"""Draw figures of the papers and of the benchmark, each as PNG and PDF.

    python figures.py curves experiments/digits/*/cnn                   accuracy and losses over the epochs
    python figures.py responses --normal FOLDER --nasty FOLDER          outputs of two teachers for single images
    python figures.py tsne --normal FOLDER --nasty FOLDER               t-SNE of their features and logits
    python figures.py inversion --teacher FOLDER FOLDER                 images made from batch-norm statistics
    python figures.py sweep omega                                       an ablation of experiments/tables.json
    python figures.py matrix matrix_digits                              a heat map of defences × attacks
    python figures.py adaptive benchmark_digits                         scores before and after the search for an attack

The script needs matplotlib, and scikit-learn for t-SNE. The same command on the same runs writes identical files.
"""

from method.inversion import invert
from study.figures import adaptive, curves, inversion, matrix, responses, style, sweep, tsne
from training.cli import Parser, add_data_flags, at_least, one_line_errors


def main():
    args = parse()
    with one_line_errors(), style.sheet():
        figure = DRAW[args.figure](args)
        for path in style.save(figure, args.output, default=getattr(args, "target", args.figure)):
            print(path)


DRAW = {
    "curves": lambda args: curves.curves(args.run, args.labels),
    "responses": lambda args: responses.responses(*teachers_and_data(args), args.images, args.temperature),
    "tsne": lambda args: tsne.tsne(*teachers_and_data(args), args.count),
    "inversion": lambda args: inversion.inversion(args.teacher, args.labels, args.per_class, **settings(args)),
    "sweep": lambda args: sweep.sweep(args.target),
    "matrix": lambda args: matrix.matrix(args.target),
    "adaptive": lambda args: adaptive.adaptive(args.target),
}
INVERSION = {
    "steps": "number of optimizer steps",
    "learning_rate": "learning rate of the optimizer",
    "a_f": "weight of the batch-norm statistics",
    "a_tv": "weight of the total variation",
    "a_l2": "weight of the L2 norm",
    "seed": "seed of the initial images",
}


def teachers_and_data(args):
    return args.normal, args.nasty, args.data_dir, args.download


def settings(args):
    return {name: getattr(args, name) for name in ("batch_size", *INVERSION)}


def parse():
    parser = Parser(__doc__)
    figures = parser.add_subparsers(dest="figure", required=True, metavar="FIGURE", parser_class=subparser)

    add = subcommand(figures, "curves", "accuracy and losses over the epochs, a line for each experiment")
    add("run", nargs="+", metavar="RUN", help="run folders; a line includes all seeds of a run")
    add("--labels", nargs="+", metavar="TEXT", help="labels of the lines, in order (default: folder names)")

    add = subcommand(
        figures, "responses", "softmax(logits / T) of the same test images under two teachers", teachers=True
    )
    add(
        "--images",
        nargs="+",
        type=int,
        metavar="N",
        help="indices of test images (default: one image of each class 0 to 3)",
    )
    add("--temperature", type=float, default=4.0, metavar="T", help="temperature (default: 4)")

    add = subcommand(figures, "tsne", "t-SNE of features and logits of two teachers", teachers=True)
    add("--count", type=int, default=1000, metavar="N", help="number of test images (default: 1000)")

    add = subcommand(figures, "inversion", "images of each class, made from the batch norm of teachers")
    add(
        "--teacher",
        nargs="+",
        required=True,
        metavar="FOLDER",
        help="run folders; for a single defended teacher, its adversarial network is drawn too",
    )
    add("--labels", nargs="+", metavar="TEXT", help="labels of the panels, in order (default: folder names)")
    add("--per_class", type=at_least(1), metavar="N", help="number of images of each class (default: as many as fit)")
    add("--batch_size", type=at_least(1), default=256, metavar="N", help="number of images in a batch (default: 256)")
    for name, about in INVERSION.items():
        default = invert.__kwdefaults__[name]
        low = 1 if name == "steps" else 0
        about = f"{about} (default: {default:g})"
        add(f"--{name}", type=at_least(low, type(default)), default=default, metavar="N", help=about)

    add = subcommand(figures, "sweep", "accuracy over the values of a key, with error bars over seeds")
    add("target", metavar="TARGET", help="an ablation of experiments/tables.json: omega, tau_s, alpha, samples, ...")

    add = subcommand(figures, "matrix", "the gain of students over the student alone, for each defence and attack")
    add("target", metavar="TARGET", help="a matrix of experiments/tables.json: matrix_digits, ...")

    add = subcommand(
        figures, "adaptive", "scores of the defences of a benchmark against plain distillation and the chosen attack"
    )
    add("target", metavar="TARGET", help="a benchmark with cards: benchmark_digits, ...")
    return parser.parse_args()


def subcommand(figures, name, about, teachers=False):
    """Add the subcommand `name`, and return its `add_argument`. teachers: whether to add the flags for two teachers."""
    parser = figures.add_parser(name, help=about, about=about)
    parser.add_argument(
        "--output",
        default="figures/yours/",
        metavar="PATH",
        help="path of the files, with or without suffix, or a folder",
    )
    if teachers:
        parser.add_argument("--normal", required=True, metavar="FOLDER", help="run folder of the normal teacher")
        parser.add_argument("--nasty", required=True, metavar="FOLDER", help="run folder of the nasty teacher")
        add_data_flags(parser)
    return parser.add_argument


def subparser(about, prog, **_):
    parser = Parser(about)
    parser.prog = prog
    return parser


if __name__ == "__main__":
    main()

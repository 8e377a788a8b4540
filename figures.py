"""The papers' figures, from run folders, each as PNG and PDF.

    python figures.py curves experiments/digits/*/cnn                   accuracy and losses, with a band over seeds
    python figures.py responses --normal FOLDER --nasty FOLDER          what two teachers answer to single images
    python figures.py tsne --normal FOLDER --nasty FOLDER               t-SNE of their features and logits
    python figures.py sweep omega                                       an ablation of experiments/tables.json

They need matplotlib, and t-SNE scikit-learn. The same command on the same runs writes the same files again.
"""

from utils.experiment import Parser, add_data_flags, one_line_errors
from utils.figures import curves, responses, style, sweep, tsne


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
    "sweep": lambda args: sweep.sweep(args.target),
}


def teachers_and_data(args):
    return args.normal, args.nasty, args.data_dir, args.download


def parse():
    parser = Parser(__doc__)
    figures = parser.add_subparsers(dest="figure", required=True, metavar="FIGURE", parser_class=subparser)

    add = flags(figures, "curves", "accuracy and losses over the epochs, a line for each experiment")
    add("run", nargs="+", metavar="RUN", help='run folders; one without ",seed=N" stands for all its seeds')
    add("--labels", nargs="+", metavar="TEXT", help="of the lines, in their order (default: folder names)")

    add = flags(figures, "responses", "softmax(logits / T) of the same test images under two teachers", teachers=True)
    add("--images", nargs="+", type=int, metavar="N", help="numbers of test images (default: one of classes 0 to 3)")
    add("--temperature", type=float, default=4.0, metavar="T", help="default: 4")

    add = flags(figures, "tsne", "t-SNE of features and logits of two teachers", teachers=True)
    add("--count", type=int, default=1000, metavar="N", help="test images (default: 1000)")

    add = flags(figures, "sweep", "accuracy over the values of a key, with a band over seeds")
    add("target", metavar="TARGET", help="an ablation of experiments/tables.json: omega, tau_s, alpha, samples, ...")
    return parser.parse_args()


def flags(figures, name, about, teachers=False):
    """Add the subcommand `name` with the flags of all or, with `teachers`, of two networks; its add_argument."""
    parser = figures.add_parser(name, help=about, about=about)
    parser.add_argument(
        "--output", default="figures/", metavar="PATH", help="of the files, with or without suffix, or their folder"
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

"""Train anything: ``python train.py data=cifar model=resnet method=sgd``. The same as ``healsg train``."""

import sys

from healsg.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", *sys.argv[1:]]))

"""Fashion-MNIST and Kuzushiji-MNIST: each 70,000 grey images of 28x28 pixels, in the format of MNIST.

Sources: H. Xiao, K. Rasul and R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms", arXiv 1708.07747, 2017; T. Clanuwat et al., "Deep Learning for Classical Japanese Literature",
arXiv 1812.01718, 2018.
"""

from __future__ import annotations

from typing import Any, ClassVar

from healsg.datasets.mnist import MNIST, Published

FASHION = {
    "train-images-idx3-ubyte.gz": (26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
    "train-labels-idx1-ubyte.gz": (29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
    "t10k-images-idx3-ubyte.gz": (4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
    "t10k-labels-idx1-ubyte.gz": (5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
}
"""Each file's size in bytes and SHA-256, as in tensorflow/datasets, url_checksums/fashion_mnist.txt."""

KUZUSHIJI = {
    "train-images-idx3-ubyte.gz": (18_165_135, "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4"),
    "train-labels-idx1-ubyte.gz": (29_497, "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17"),
    "t10k-images-idx3-ubyte.gz": (3_041_136, "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5"),
    "t10k-labels-idx1-ubyte.gz": (5_120, "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c"),
}
"""Likewise, url_checksums/kmnist.txt."""

CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


class FashionMNIST(MNIST):
    """Fashion-MNIST: 60,000 pieces of clothing for training and 10,000 for testing, kept in memory as uint8.

    The files are in ``root/FashionMNIST/raw``, as in torchvision.

    Args:
        flip: flip training images horizontally at random.
        common: the arguments of MNIST.
    """

    repeatable = True

    published: ClassVar[Published] = Published(
        "FashionMNIST",
        FASHION,
        (
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        ),
        (0.2860,),
        (0.3530,),
        CLOTHES,
    )

    def __init__(self, flip: bool = True, **common: Any) -> None:
        super().__init__(flip=flip, **common)


class KMNIST(MNIST):
    """Kuzushiji-MNIST: 60,000 cursive Japanese characters to train with and 10,000 to test, kept in memory as uint8.

    The files are in ``root/KMNIST/raw``, as in torchvision. The arguments are those of MNIST.
    """

    repeatable = True

    published: ClassVar[Published] = Published(
        "KMNIST",
        KUZUSHIJI,
        ("https://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
        (0.1918,),
        (0.3483,),
        ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    )

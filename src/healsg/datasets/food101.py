"""Food-101: 101,000 pictures of 101 dishes; the labels of the training part are not cleaned.

Source: L. Bossard, M. Guillaumin and L. Van Gool, "Food-101: Mining Discriminative Components with Random Forests",
ECCV 2014.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from healsg.datasets.pictures import Listed, PictureFiles, parsed
from healsg.datasets.published.archives import Archive

ARCHIVE = Archive(
    "https://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
    4_996_278_331,
    "d97d15e438b7f4498f96086a4f7e2fa42a32f2712e87d3295441b2b6314053a4",
    "food-101",
    (".jpg", ".json"),
)
"""Size and SHA-256 as in tensorflow/datasets, url_checksums/food101.txt."""

NAMES = """apple_pie baby_back_ribs baklava beef_carpaccio beef_tartare beet_salad beignets bibimbap bread_pudding
    breakfast_burrito bruschetta caesar_salad cannoli caprese_salad carrot_cake ceviche cheese_plate cheesecake
    chicken_curry chicken_quesadilla chicken_wings chocolate_cake chocolate_mousse churros clam_chowder club_sandwich
    crab_cakes creme_brulee croque_madame cup_cakes deviled_eggs donuts dumplings edamame eggs_benedict escargots
    falafel filet_mignon fish_and_chips foie_gras french_fries french_onion_soup french_toast fried_calamari fried_rice
    frozen_yogurt garlic_bread gnocchi greek_salad grilled_cheese_sandwich grilled_salmon guacamole gyoza hamburger
    hot_and_sour_soup hot_dog huevos_rancheros hummus ice_cream lasagna lobster_bisque lobster_roll_sandwich
    macaroni_and_cheese macarons miso_soup mussels nachos omelette onion_rings oysters pad_thai paella pancakes
    panna_cotta peking_duck pho pizza pork_chop poutine prime_rib pulled_pork_sandwich ramen ravioli red_velvet_cake
    risotto samosa sashimi scallops seaweed_salad shrimp_and_grits spaghetti_bolognese spaghetti_carbonara spring_rolls
    steak strawberry_shortcake sushi tacos takoyaki tiramisu tuna_tartare waffles"""


class Food101(PictureFiles):
    """Food-101: 75,750 pictures for training and 25,250 for testing.

    The files are in ``root/food-101``, as in torchvision. The arguments are those of PictureFiles.
    """

    repeatable = True

    archives = (ARCHIVE,)
    parts: ClassVar[Mapping[str, str]] = {"train": "train", "test": "test"}

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(NAMES.split())

    def listed(self, part: str, folder: Path) -> Listed:
        images, labels = folder / ARCHIVE.folder, {name: label for label, name in enumerate(self.class_names)}

        def parse(text: str) -> Listed:
            rows = [
                (str(images / "images" / f"{name}.jpg"), labels[dish])
                for dish, names in json.loads(text).items()
                for name in names
            ]
            return [path for path, _ in rows], [label for _, label in rows]

        return parsed(images / "meta" / f"{part}.json", parse)

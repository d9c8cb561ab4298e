"""What the page is told about the parts that it shows."""

from imagepriors.demo.scenes import SEGMENTATION_NAMES
from imagepriors.studio.contents import Contents


def test_shards_bring_the_names_of_the_labels_of_masks(contents: Contents) -> None:
    (shards,) = contents.described["shards"]
    assert shards["label_names"] == ["unlabelled", *SEGMENTATION_NAMES]
    assert shards["conditions"].keys() == {"segmentation", "depth", "pose"}

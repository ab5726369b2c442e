"""CHAIR: mentions, the instances file, and the shares of what is not there."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cobra.evaluation.data.captioned_image import CaptionedImage
from cobra.evaluation.metrics.base import Captions, References, value
from cobra.evaluation.metrics.chair import _table, chair, mentions, plurals, read_objects
from cobra.util.errors import UserError

CATEGORIES = list(_table()["categories"])

MENTIONS = [
    ("A man and two dogs.", ["person", "dog"]),
    ("Three women, some people and their children", ["person", "person", "person"]),
    ("a human looking at humans", []),
    ("A hot dog on a plate", ["hot dog"]),
    ("hot-dogs and dogs", ["hot dog", "dog"]),
    ("TEDDY BEARS beside a bear", ["teddy bear", "bear"]),
    ("a train on the train tracks near a train station", ["train"]),
    ("passenger trains and a passenger jet", ["train", "airplane"]),
    ("a baby elephant beside its mother, and a baby", ["elephant", "person", "person"]),
    ("baby animals with adult zebras", ["zebra"]),
    ("The toilet seat is up", ["toilet"]),
    ("A toilet with the seat up, in front of seats", ["toilet"]),
    ("a seat beside a chair", ["chair", "chair"]),
    ("toilet paper on a table", ["dining table"]),
    ("a man in a bow tie", ["person", "tie"]),
    ("a glass of wine, wine glasses, a wineglass", ["wine glass", "wine glass", "wine glass"]),
    ("knives, geese, mice, oxen, calves, wolves", ["knife", "bird", "mouse", "cow", "cow"]),
    ("sheep, scissors, skis, cattle, broccoli", ["sheep", "scissors", "skis", "cow", "broccoli"]),
    ("buses, benches, couches, ponies, buffaloes", ["bus", "bench", "couch", "horse", "cow"]),
    ("a computer mouse, a mouse and a keyboard", ["mouse", "mouse", "keyboard"]),
    ("the man's T.V. and his cell-phone", ["person", "tv", "cell phone"]),
    ("stove top oven", ["oven"]),
    ("an apple pie, orange juice, apples", ["apple"]),
    ("a fire hydrant by a stop sign and a street sign", ["fire hydrant", "stop sign"]),
    ("a dog\u2028cat \U0001f436", ["dog", "cat"]),
    ("Nothing of the kind.", []),
    ("", []),
]


@pytest.mark.parametrize(("caption", "names"), MENTIONS)
def test_mentions(caption, names):
    assert mentions(caption) == names


def test_the_table_names_each_category_and_no_word_twice():
    table = _table()
    assert len(CATEGORIES) == 80
    words = [word for name, synonyms in table["categories"].items() for word in (name, *synonyms)]
    words += list(table["other_phrases"])
    assert len(words) == len(set(words)) and all(word == word.lower() for word in words)
    named = {name for names in table["qualifiers"].values() for name in names} | set(table["other_phrases"].values())
    assert named - {None} <= set(CATEGORIES)


@pytest.mark.parametrize("name", CATEGORIES)
def test_every_category_is_found_in_singular_and_plural(name):
    assert mentions(f"A {name}.") == [name]
    assert mentions(f"two {plurals(name)[0]}") == [name]


def test_plurals():
    assert plurals("fireman")[-1] == "firemen" and plurals("human") == ["humans"]
    assert plurals("puppy")[-1] == "puppies" and "toys" in plurals("toy") and "toies" not in plurals("toy")
    assert "wine glasses" in plurals("wine glass") and "knives" in plurals("knife") and plurals("mouse")[0] == "mice"


@given(st.text(max_size=60))
def test_any_text_has_known_mentions(text):
    assert set(mentions(text)) <= set(CATEGORIES)


@pytest.fixture
def instances(tmp_path):
    """Two images: 1 with a dog and a chair, 2 with nothing annotated."""
    content = {
        "images": [{"id": 1}, {"id": 2}],
        "categories": [{"id": number, "name": name} for number, name in enumerate(CATEGORIES)],
        "annotations": [
            {"image_id": 1, "category_id": CATEGORIES.index(name), "bbox": [0, 0, 1, 1]}
            for name in ("dog", "chair", "dog")
        ],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return path


def test_scores_by_hand(instances):
    objects = read_objects(instances)
    assert objects.categories == {1: {"dog", "chair"}, 2: frozenset()}
    images = [CaptionedImage(1, "a", ("A pup.",)), CaptionedImage("2", "b", ("A cat.", "A kitten on a sofa."))]
    score = chair(objects)(References(images))
    scores = score(Captions(["A dog, a seat, a cat and two cats.", "The cat on a couch"]))
    # The first mentions four and has two cats too many; the second's are in its references.
    assert scores["chair_i"].per_image.tolist() == [0.5, 0] and value(scores["chair_i"]) == 2 / 6
    assert scores["chair_s"].per_image.tolist() == [1, 0] and value(scores["chair_s"]) == 0.5
    nothing = score(Captions(["", "A photo."]))
    assert value(nothing["chair_i"]) == value(nothing["chair_s"]) == 0


def test_all_images_need_objects(instances):
    images = [CaptionedImage(number, "a", ("A dog.",)) for number in range(9)]
    with pytest.raises(UserError, match=r"the instances file lacks 7 images: 0, 3, 4, 5, 6, \.\.\..* same images"):
        chair(read_objects(instances))(References(images))


def captions_file(content):
    del content["categories"]
    return "has no list `categories`"


def key_points(content):
    content["categories"] = content["categories"][:1]
    return r"does not list the 80 categories .*\(79 of them are not there\)"


def other_categories(content):
    content["categories"].append({"id": 99, "name": "aardvark"})
    return r"does not list the 80 categories .*\(it has 'aardvark'\)"


def results_file(content):
    content["images"] = None
    return "no lists `images` and `annotations`.*instances_val2017.json"


def no_category(content):
    content["annotations"][1] = {"image_id": 1, "caption": "A dog."}
    return r"annotations\[1\] has no `category_id`; it has `image_id`, `caption`"


def unknown_category(content):
    content["annotations"][2]["category_id"] = 80
    return r"annotations\[2\] belongs to the image 1 and the category 80"


def unknown_image(content):
    content["annotations"][0]["image_id"] = 3
    return r"annotations\[0\] belongs to the image 3"


def no_id(content):
    content["images"][1] = 2
    return r"images\[1\] is 2; an object with `id` was expected"


HARMS = [captions_file, key_points, other_categories, results_file, no_category, unknown_category, unknown_image, no_id]


@pytest.mark.parametrize("harm", HARMS)
def test_wrong_files_are_named(instances, harm):
    content = json.loads(instances.read_text())
    message = harm(content)
    instances.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as error:
        read_objects(instances)
    assert str(instances) in str(error.value)


def test_a_list_and_a_missing_file(tmp_path):
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UserError, match="no COCO instances file"):
        read_objects(tmp_path / "list.json")
    with pytest.raises(UserError, match="instances file does not exist.*annotations_trainval2017"):
        read_objects(tmp_path / "none.json")

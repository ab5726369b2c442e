"""Held-out rows of several sources, some of which cannot be scored."""

import json

STAGES = "<SUMMARY> s </SUMMARY>\n\n<CAPTION> c </CAPTION>\n\n<REASONING> r </REASONING>\n\n"
CHOICE = "Which? A. red B. blue"


def tagged(conclusion):
    return f"{STAGES}<CONCLUSION> {conclusion} </CONCLUSION>"


def row(row_id, image, *texts):
    turns = [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]
    return {"id": row_id, **({} if image is None else {"image": image}), "conversations": turns}


ROWS = [
    row("7", "sqa/train/7/image.png", f"<image>\n{CHOICE}", tagged("B")),
    row(7, "images/sqa/train/8/image.png", CHOICE, tagged("A"), "And why?", "no tags"),
    row(3, None, "How many?", tagged("1")),
    row(4, "./chartqa/1.png", "How much?", f"{STAGES}<CONCLUSION> 1,000"),
    row(5, "coco/train2017/000000000009.jpg", "What?", "no tags at all"),
    row(6, "6.png", "Is it?", tagged("Yes")),
    row(8, "coco/train2017/000000000009.jpg", "A question without an answer"),
    row(9, "coco/train2017/000000000009.jpg", "What?", tagged("")),
]


def write(folder, rows, name="holdout.json"):
    path = folder / name
    lines = "\n".join(json.dumps(row) for row in rows)
    path.write_text(lines if name.endswith(".jsonl") else json.dumps(rows))
    return path

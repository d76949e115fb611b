"""Small data sets with boxes, in the forms of VOC and COCO."""

import numpy as np
import tensorflow as tf

SIZE = (40, 60)  # width, height
_OBJECT = """<object><name>{name}</name><truncated>1</truncated><difficult>{difficult}</difficult>
<bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
</object>"""


def xml(*objects, size=SIZE):
    """Returns an annotation of objects `(name, box)` or `(name, box, difficult)`."""
    parts = [
        _OBJECT.format(*box, name=name, difficult=int(any(more))) for name, box, *more in objects
    ]
    width, height = size
    head = f"<size><width>{width}</width><height>{height}</height><depth/></size>"
    return f"<annotation>{head}{''.join(parts)}</annotation>"


def picture(seed, width=SIZE[0], height=SIZE[1]):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return tf.io.encode_jpeg(pixels, quality=95).numpy()


def write_voc(root, annotations, lists=()):
    """Writes a folder in VOC form: a dict of names to XML, and a dict of lists of names."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number, (name, content) in enumerate(annotations.items()):
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(picture(number))
        (root / "Annotations" / f"{name}.xml").write_text(content)
    for name, names in dict(lists).items():
        (root / "ImageSets/Main" / f"{name}.txt").write_text("\n".join(names) + "\n")
    return root


def coco_content(count):
    """Returns the json of images with a sign of id 3 and a crowd of lights of id 7."""
    categories = [
        {"id": 0, "name": "things", "supercategory": "none"},
        {"id": 7, "name": "light", "supercategory": "things"},
        {"id": 3, "name": "sign", "supercategory": "things"},
    ]
    images = [
        {"id": 10 + index, "file_name": f"{index}.jpg", "width": SIZE[0], "height": SIZE[1]}
        for index in range(count)
    ]
    annotations = []
    for image in images[1:]:
        key = {"image_id": image["id"]}
        annotations += [
            {**key, "id": 1, "category_id": 3, "bbox": [4, 6, 10.5, 12], "area": 100},
            {**key, "id": 2, "category_id": 7, "bbox": [0, 30, 40, 30], "iscrowd": 1, "area": 900},
        ]
    return {"images": images, "annotations": annotations, "categories": categories}

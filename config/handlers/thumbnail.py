# /// script
# requires-python = ">=3.11"
# dependencies = ["pillow>=11"]
# ///
"""Make a thumbnail of every picture that is uploaded. The block above is all it takes: eventd installs Pillow for this function alone.

    [functions.thumbnail]
    environment = { OUTPUT = "/srv/thumbnails", SIZE = "320" }

    [triggers.pictures]
    type = "directory"
    path = "/srv/pictures"
    include = ["*.jpg", "*.jpeg", "*.png", "*.webp"]
    function = "thumbnail"

Without OUTPUT, thumbnails go to a folder `NAME-thumbnails` beside the watched one. Never into it: there they would be new
pictures, and get thumbnails of their own.
"""

import hashlib
import os

from PIL import Image, ImageOps

SIZE = int(os.environ.get("SIZE", "320"))


def output_for(root):
    root = os.path.realpath(root)
    output = os.path.realpath(os.environ.get("OUTPUT") or root + "-thumbnails")
    if os.path.commonpath([root, output]) == root:
        raise ValueError(f"OUTPUT {output} lies inside the watched folder {root}; thumbnails there would be made into thumbnails again")
    os.makedirs(output, exist_ok=True)
    return output


def thumbnail(path, root):
    # Pictures of one name in two folders must not overwrite each other's thumbnail, so the whole path is part of the name.
    tag = hashlib.sha256(os.fsencode(os.path.relpath(path, root))).hexdigest()[:8]
    stem = os.path.splitext(os.path.basename(path))[0]
    target = os.path.join(output_for(root), f"{stem}-{tag}.jpg")
    temporary = f"{target}.{os.getpid()}.part"
    try:
        with Image.open(path) as picture:
            small = ImageOps.exif_transpose(picture).convert("RGB")
            small.thumbnail((SIZE, SIZE))
            small.save(temporary, "JPEG", quality=int(os.environ.get("QUALITY", "85")))
        os.replace(temporary, target)  # readers see no half-written thumbnail
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    return target


def handler(event, context):
    made = [thumbnail(record["eventd"]["path"], record["eventd"]["root"]) for record in event["Records"]]
    for target in made:
        print(f"wrote {target}")
    return {"thumbnails": made}

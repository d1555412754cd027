_base_ = ["../_base_/pretrain.py"]

# fmt: off
class_names = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "picture", "desk", "shelves",
    "curtain", "dresser", "pillow", "mirror", "ceiling", "refrigerator", "television", "nightstand", "sink", "lamp",
    "otherstructure", "otherfurniture", "otherprop",
)
# fmt: on
model = dict(
    conditions=("Structured3D",),
    class_name=class_names,
    valid_index=(tuple(range(25)),),
)

num_cameras = 2
data = dict(
    num_classes=25,
    ignore_index=-1,
    names=class_names,
    train=dict(
        type="Structured3DRGBDDataset",
        split="train",
        data_root="data/structured3d",
        render_semantic=True,
        num_cameras=num_cameras,
        transform={{_base_.motions}}
        + [dict(type="Add", keys_dict={"condition": "Structured3D"})]
        + {{_base_.collection}},
        test_mode=False,
    ),
)

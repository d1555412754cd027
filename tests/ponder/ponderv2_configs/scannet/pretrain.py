_base_ = ["../_base_/pretrain.py"]

# fmt: off
class_names = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture",
    "counter", "desk", "curtain", "refridgerator", "shower curtain", "toilet", "sink", "bathtub", "otherfurniture",
)
# fmt: on
model = dict(
    conditions=("ScanNet",),
    class_name=class_names,
    valid_index=(tuple(range(20)),),
    ppt_loss_weight=1.0,
    ppt_criteria=[dict(type="CrossEntropyLoss", loss_weight=1.0, ignore_index=-1)],
)

num_cameras = 2
data = dict(
    num_classes=20,
    ignore_index=-1,
    names=class_names,
    train=dict(
        type="ScanNetRGBDDataset",
        split="train",
        data_root="data/scannet",
        render_semantic=True,
        num_cameras=num_cameras,
        transform={{_base_.motions}} + [dict(type="Add", keys_dict={"condition": "ScanNet"})] + {{_base_.collection}},
        test_mode=False,
        loop=2,
    ),
)

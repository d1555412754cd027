_base_ = ["../_base_/pretrain.py"]

# fmt: off
class_names = (
    "ceiling", "floor", "wall", "beam", "column", "window", "door", "table", "chair", "sofa", "bookcase", "board",
    "clutter",
)
# fmt: on
model = dict(
    conditions=("S3DIS",),
    class_name=class_names,
    valid_index=(tuple(range(13)),),
)

num_cameras = 2
data = dict(
    num_classes=13,
    ignore_index=-1,
    names=class_names,
    train=dict(
        type="S3DISRGBDDataset",
        split=("Area_1", "Area_2", "Area_3", "Area_4", "Area_6"),
        data_root="data/s3dis",
        render_semantic=True,
        num_cameras=num_cameras,
        transform={{_base_.motions}} + [dict(type="Add", keys_dict={"condition": "S3DIS"})] + {{_base_.collection}},
        test_mode=False,
    ),
)

_base_ = ["../_base_/ppt.py"]

train = dict(type="MultiDatasetTrainer")

# fmt: off
text_names = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "bookcase",
    "picture", "counter", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "ceiling", "refrigerator",
    "television", "shower curtain", "nightstand", "toilet", "sink", "lamp", "bathtub", "garbagebin", "board",
    "beam", "column", "clutter", "other structure", "other furniture", "other property",
)
class_names = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture",
    "counter", "desk", "curtain", "refridgerator", "shower curtain", "toilet", "sink", "bathtub", "otherfurniture",
)
# fmt: on
model = dict(
    _delete_=True,
    type="PPT-v1m1",
    backbone={{_base_.prompted}},
    criteria={{_base_.criteria}},
    backbone_out_channels=8,
    context_channels=16,
    conditions={{_base_.conditions}},
    template="[x]",
    clip_model="ViT-B/16",
    class_name=text_names,
    valid_index=(
        (0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 13, 14, 15, 16, 17, 18, 19, 20, 21, 23, 25, 26, 33, 34, 35),
        (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 20, 22, 24, 25, 27, 34),
        (0, 1, 4, 5, 6, 7, 8, 10, 19, 29, 30, 31, 32),
    ),
    backbone_mode=False,
)

data = dict(
    num_classes=20,
    names=class_names,
    train=dict(
        _delete_=True,
        type="ConcatDataset",
        datasets=[
            dict(
                type="Structured3DDataset",
                split="train",
                data_root="data/structured3d",
                transform={{_base_.augment}}
                + [{{_base_.voxels}}, dict(type="SphereCrop", sample_rate=0.8, mode="random")]
                + {{_base_.end}}
                + [dict(type="Add", keys_dict={"condition": "Structured3D"})]
                + {{_base_.collection_with_condition}},
                test_mode=False,
                loop=4,
            ),
            dict(
                type="ScanNetDataset",
                split="train",
                data_root="data/scannet",
                transform={{_base_.augment}}
                + [{{_base_.voxels}}, dict(type="SphereCrop", point_max=2000, mode="random")]
                + {{_base_.end}}
                + [dict(type="Add", keys_dict={"condition": "ScanNet"})]
                + {{_base_.collection_with_condition}},
                test_mode=False,
                loop=2,
            ),
            dict(
                type="S3DISDataset",
                split=("Area_1", "Area_2", "Area_3", "Area_4", "Area_6"),
                data_root="data/s3dis",
                transform={{_base_.augment}}
                + [{{_base_.voxels}}, dict(type="SphereCrop", sample_rate=0.6, mode="random")]
                + {{_base_.end}}
                + [dict(type="Add", keys_dict={"condition": "S3DIS"})]
                + {{_base_.collection_with_condition}},
                test_mode=False,
                loop=1,
            ),
        ],
    ),
    val=dict(
        type="ScanNetDataset",
        split="val",
        data_root="data/scannet",
        transform={{_base_.voxelised}}
        + [dict(type="Add", keys_dict={"condition": "ScanNet"})]
        + {{_base_.collection_with_condition}},
    ),
    test=dict(
        type="ScanNetDataset",
        split="val",
        data_root="data/scannet",
        test_cfg=dict(
            post_transform=[dict(type="CenterShift", apply_z=False)]
            + [dict(type="Add", keys_dict={"condition": "ScanNet"})]
            + {{_base_.fragment_end}},
        ),
    ),
)

from ponder.datasets.preprocessing.scannet.meta_data.scannet200_constants import (
    CLASS_LABELS_200,
)

_base_ = ["../_base_/ppt.py"]

backbone = {{_base_.prompted}}
backbone["num_classes"] = 200
model = dict(
    _delete_=True,
    type="DefaultSegmentor",
    backbone=dict(
        type="PPT-v1m1",
        backbone=backbone,
        criteria={{_base_.criteria}},
        backbone_out_channels=8,
        context_channels=16,
        conditions={{_base_.conditions}},
        backbone_mode=True,
    ),
    criteria={{_base_.criteria}},
)

dataset_type = "ScanNet200Dataset"
data_root = "data/scannet"
data = dict(
    num_classes=200,
    names=CLASS_LABELS_200,
    train=dict(
        type=dataset_type,
        split="train",
        data_root=data_root,
        transform={{_base_.augment}}
        + [{{_base_.voxels}}, dict(type="SphereCrop", point_max=2000, mode="random")]
        + {{_base_.end}}
        + [dict(type="Add", keys_dict={"condition": "ScanNet"})]
        + {{_base_.collection_with_condition}},
    ),
    val=dict(
        type=dataset_type,
        split="val",
        data_root=data_root,
        transform={{_base_.voxelised}}
        + [dict(type="Add", keys_dict={"condition": "ScanNet"})]
        + {{_base_.collection_with_condition}},
    ),
    test=dict(
        type=dataset_type,
        split="val",
        data_root=data_root,
        test_cfg=dict(
            post_transform=[dict(type="CenterShift", apply_z=False)]
            + [dict(type="Add", keys_dict={"condition": "ScanNet"})]
            + {{_base_.fragment_end}},
        ),
    ),
)

hooks = [
    dict(type="CheckpointLoader", keywords="module.", replacement="module.backbone."),
    dict(type="IterationTimer", warmup_iter=2),
    dict(type="InformationWriter"),
    dict(type="SemSegEvaluator"),
    dict(type="CheckpointSaver", save_freq=None),
    dict(type="PreciseEvaluator", test_last=False),
]

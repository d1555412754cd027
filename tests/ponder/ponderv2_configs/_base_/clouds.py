# How the clouds of every file are augmented, and what makes one ready for a network; between and behind the two stands
# what the files do not share.
augment = [
    dict(type="CenterShift", apply_z=True),
    dict(type="RandomDropout", dropout_ratio=0.2, dropout_application_ratio=0.2),
    dict(type="RandomRotate", angle=[-1, 1], axis="z", center=[0, 0, 0], p=0.5),
    dict(type="RandomRotate", angle=[-1 / 64, 1 / 64], axis="x", p=0.5),
    dict(type="RandomRotate", angle=[-1 / 64, 1 / 64], axis="y", p=0.5),
    dict(type="RandomScale", scale=[0.9, 1.1]),
    dict(type="RandomFlip", p=0.5),
    dict(type="RandomJitter", sigma=0.005, clip=0.02),
    dict(type="ElasticDistortion", distortion_params=[[0.2, 0.4], [0.8, 1.6]]),
    dict(type="ChromaticAutoContrast", p=0.2, blend_factor=None),
    dict(type="ChromaticTranslation", p=0.95, ratio=0.05),
    dict(type="ChromaticJitter", p=0.95, std=0.05),
]
voxels = dict(type="GridSample", grid_size=0.1, hash_type="fnv", mode="train", return_grid_coord=True)
end = [dict(type="CenterShift", apply_z=False), dict(type="NormalizeColor"), dict(type="ShufflePoint")]
voxelised = [
    dict(type="CenterShift", apply_z=True),
    voxels,
    dict(type="CenterShift", apply_z=False),
    dict(type="NormalizeColor"),
]
collection = [
    dict(type="ToTensor"),
    dict(type="Collect", keys=("coord", "grid_coord", "segment"), feat_keys=("color", "normal")),
]

data = dict(
    ignore_index=-1,
    train=dict(test_mode=False),
    val=dict(
        transform=voxelised + collection,
        test_mode=False,
    ),
    test=dict(
        transform=[dict(type="CenterShift", apply_z=True), dict(type="NormalizeColor")],
        test_mode=True,
        test_cfg=dict(
            voxelize=dict(
                type="GridSample",
                grid_size=0.1,
                hash_type="fnv",
                mode="test",
                keys=("coord", "color", "normal"),
                return_grid_coord=True,
            ),
            crop=None,
            post_transform=[
                dict(type="CenterShift", apply_z=False),
                dict(type="ToTensor"),
                dict(type="Collect", keys=("coord", "grid_coord", "index"), feat_keys=("color", "normal")),
            ],
            aug_transform=[
                [
                    dict(type="RandomRotateTargetAngle", angle=[1 / 2], axis="z", center=[0, 0, 0], p=1),
                    dict(type="RandomScale", scale=[0.95, 0.95]),
                ],
                [dict(type="RandomFlip", p=1)],
            ],
        ),
    ),
)

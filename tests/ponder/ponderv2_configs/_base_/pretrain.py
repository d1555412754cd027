# What the pre-training files share: settings, networks, renderer, optimiser; datasets and classes are their own.
_base_ = ["runtime.py"]

num_gpu = 1
max_point = 2000000
batch_size = 2 * num_gpu
num_worker = 0 * num_gpu
mix_prob = 0.0
empty_cache = True
enable_amp = True
evaluate = False
find_unused_parameters = True

# Before and after the name of the dataset is added.
motions = [
    dict(type="CenterShift", apply_z=True, keys=["extrinsic"]),
    dict(type="RandomDropout", dropout_ratio=0.5, dropout_application_ratio=1.0),
    dict(type="RandomRotate", angle=[-1, 1], axis="z", center=[0, 0, 0], p=0.5, keys=["extrinsic"]),
    dict(type="RandomRotate", angle=[-1 / 64, 1 / 64], axis="x", p=0.5, keys=["extrinsic"]),
    dict(type="RandomRotate", angle=[-1 / 64, 1 / 64], axis="y", p=0.5, keys=["extrinsic"]),
    dict(type="RandomScale", scale=[0.9, 1.1], keys=["extrinsic"]),
    dict(type="RandomFlip", p=0.5, keys=["extrinsic"]),
    dict(type="GridSample", grid_size=0.1, hash_type="fnv", mode="train", return_grid_coord=True),
    dict(type="CenterShift", apply_z=False, keys=["extrinsic"]),
    dict(type="NormalizeColor"),
    dict(type="ShufflePoint"),
]
collection = [
    dict(type="ToTensor"),
    dict(
        type="Collect",
        keys=("coord", "grid_coord", "segment", "condition", "rgb", "depth", "depth_scale"),
        stack_keys=("intrinsic", "extrinsic", "rgb", "depth", "semantic"),
        feat_keys=("color", "normal"),
    ),
]

model = dict(
    type="PonderIndoor-v2",
    backbone=dict(
        type="SpUNet-v1m1",
        in_channels=6,
        num_classes=0,
        base_channels=8,
        channels=(8, 8, 8, 8, 8, 8, 8, 8),
        layers=(1, 1, 1, 1, 1, 1, 1, 1),
    ),
    projection=dict(type="UNet3D-v1m2", in_channels=8, out_channels=16, f_maps=4, num_levels=3),
    renderer=dict(
        type="NeuSModel",
        field=dict(
            type="SDFField",
            sdf_decoder=dict(in_dim=8, out_dim=9, hidden_size=16, n_blocks=1, points_factor=0.0),
            rgb_decoder=dict(in_dim=22, out_dim=3, hidden_size=16, n_blocks=0, points_factor=0.0),
            semantic_decoder=dict(in_dim=19, out_dim=512, hidden_size=16, n_blocks=0, points_factor=0.0),
            beta_init=0.3,
            use_gradient=True,
            volume_type="default",
            padding_mode="zeros",
            share_volume=False,
            norm_pts=True,
            norm_padding=0.1,
        ),
        collider=dict(type="AABBBoxCollider", near_plane=0.01, bbox=[-0.55, -0.55, -0.55, 0.55, 0.55, 0.55]),
        sampler=dict(
            type="NeuSSampler",
            initial_sampler="UniformSampler",
            num_samples=12,
            num_samples_importance=6,
            num_upsample_steps=1,
            train_stratified=True,
            single_jitter=False,
        ),
        loss=dict(
            sensor_depth_truncation=0.05,
            temperature=0.01,
            weights=dict(
                eikonal_loss=0.01,
                free_space_loss=1.0,
                sdf_loss=10.0,
                depth_loss=1.0,
                rgb_loss=10.0,
                semantic_loss=0.1,
            ),
        ),
    ),
    mask=None,
    grid_shape=(16, 16, 8),
    grid_size=0.1,
    val_ray_split=64,
    ray_nsample=16,
    padding=0.1,
    backbone_out_channels=8,
    pool_type="mean",
    render_semantic=True,
    template=("itap of a [x]", "a photo of a [x]", "a [x] in a kitchen"),
    clip_model="ViT-B/16",
)

epoch = 2
eval_epoch = 1
optimizer = dict(type="SGD", lr=0.0005 * batch_size / 8, momentum=0.9, weight_decay=0.0001, nesterov=True)
scheduler = dict(
    type="OneCycleLR",
    max_lr=optimizer["lr"],
    pct_start=0.05,
    anneal_strategy="cos",
    div_factor=10.0,
    final_div_factor=10000.0,
)

hooks = [
    dict(type="CheckpointLoader"),
    dict(type="IterationTimer", warmup_iter=2),
    dict(type="InformationWriter"),
    dict(type="CheckpointSaver", save_freq=None),
]

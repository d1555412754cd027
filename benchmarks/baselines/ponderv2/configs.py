"""The renderer configurations that PonderV2 ships, number for number, and a VolSDF one, of which it ships none."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]


def _shallow_decoder(in_dim: int, out_dim: int, n_blocks: int) -> Config:
    return {"in_dim": in_dim, "out_dim": out_dim, "hidden_size": 128, "n_blocks": n_blocks, "points_factor": 0.0}


def _neus_sampler(num_samples: int, num_samples_importance: int) -> Config:
    return {
        "type": "NeuSSampler",
        "initial_sampler": "UniformSampler",
        "num_samples": num_samples,
        "num_samples_importance": num_samples_importance,
        "num_upsample_steps": 1,
        "train_stratified": True,
        "single_jitter": False,
    }


def indoor() -> Config:
    """ScanNet, S3DIS, Structured3D and the three together: all use this one. Volumes have 128 channels."""
    return {
        "type": "NeuSModel",
        "field": {
            "type": "SDFField",
            "sdf_decoder": _shallow_decoder(64, 65, n_blocks=1),
            "rgb_decoder": _shallow_decoder(134, 3, n_blocks=0),
            "semantic_decoder": _shallow_decoder(131, 512, n_blocks=0),
            "beta_init": 0.3,
            "use_gradient": True,
            "volume_type": "default",
            "padding_mode": "zeros",
            "share_volume": False,
            "norm_pts": True,
            "norm_padding": 0.1,
        },
        "collider": {
            "type": "AABBBoxCollider",
            "near_plane": 0.01,
            "bbox": [-0.55, -0.55, -0.55, 0.55, 0.55, 0.55],
        },
        "sampler": _neus_sampler(96, 36),
        "loss": {
            "sensor_depth_truncation": 0.05,
            "temperature": 0.01,
            "weights": {
                "eikonal_loss": 0.01,
                "free_space_loss": 1.0,
                "sdf_loss": 10.0,
                "depth_loss": 1.0,
                "rgb_loss": 10.0,
                "semantic_loss": 0.1,
            },
        },
    }


def outdoor(rgb: bool = False, semantic: bool = False) -> Config:
    """nuScenes: depth alone, with colour, or with semantics. Volumes have 32 channels.

    Deep decoders that read the points; no losses on samples.
    """
    field: Config = {
        "type": "SDFField",
        "sdf_decoder": {"in_dim": 32, "out_dim": 17, "hidden_size": 16, "n_blocks": 5},
        "beta_init": 0.3,
        "use_gradient": True,
        "volume_type": "default",
        "padding_mode": "zeros",
        "share_volume": True,
    }
    loss: Config = {"sensor_depth_truncation": 0.01, "weights": {"depth_loss": 10.0}}
    if rgb:
        field["rgb_decoder"] = {"in_dim": 54, "out_dim": 3, "hidden_size": 16, "n_blocks": 3}
        loss["weights"]["rgb_loss"] = 10.0
    if semantic:
        field["semantic_decoder"] = {"in_dim": 51, "out_dim": 512, "hidden_size": 16, "n_blocks": 3}
        loss["weights"]["semantic_loss"] = 0.1
        loss["temperature"] = 0.01
    return {
        "type": "NeuSModel",
        "field": field,
        "collider": {"type": "AABBBoxCollider", "near_plane": 0.01, "bbox": [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]},
        "sampler": _neus_sampler(72, 24),
        "loss": loss,
    }


def volsdf(base: Config) -> Config:
    """`base` rendered by VolSDF, with its sampler at default settings."""
    return base | {
        "type": "VolSDFModel",
        "sampler": {"type": "ErrorBoundedSampler", "initial_sampler": "UniformSampler"},
    }

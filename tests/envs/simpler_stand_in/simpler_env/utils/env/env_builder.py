from mani_skill2_real2sim import build


def build_maniskill2_env(env_name, **kwargs):
    return build(env_name, **kwargs)

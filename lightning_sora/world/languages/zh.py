"""Chinese in simplified characters: measure word, colour, size, noun, and where to before the verb; no spaces."""

from __future__ import annotations

from lightning_sora.world.facts import ObjectFacts
from lightning_sora.world.languages.base import Choose, Language

SHAPES = {
    "sphere": ("球体", "球"),
    "cube": ("立方体", "方块"),
    "cylinder": ("圆柱体", "圆柱"),
    "cone": ("圆锥体", "圆锥"),
    "torus": ("圆环",),
}
COLORS = {
    "red": "红色",
    "green": "绿色",
    "blue": "蓝色",
    "yellow": "黄色",
    "purple": "紫色",
    "cyan": "青色",
    "orange": "橙色",
    "pink": "粉色",
}
SIZES = {"small": "小", "medium": "中号", "big": "大"}
THINGS = ("一个{color}的{size}{shape}", "一个{size}的{color}{shape}")
MOTIONS = {
    "right": ("向右移动", "往右边移动"),
    "left": ("向左移动", "往左边移动"),
    "away": ("向远方移动", "离我们远去"),
    "toward": ("向我们移动", "朝我们靠近"),
    "away_right": ("向右边远方移动", "往右离我们远去"),
    "away_left": ("向左边远方移动", "往左离我们远去"),
    "toward_right": ("向右朝我们移动", "往右朝我们靠近"),
    "toward_left": ("向左朝我们移动", "往左朝我们靠近"),
    "still": ("静止不动", "一动不动"),
    "bounce": ("弹跳", "上下弹跳"),
    "spin": ("原地旋转", "在原地打转"),
    "orbit": ("绕圈移动", "沿圆圈移动"),
    "fall": ("掉下来", "掉到地上"),
    "behind": ("在墙后面向{way}移动", "从墙后面往{way}经过"),
    "strike": ("向{way}移动并撞上另一个", "往{way}移动撞到另一个"),
    "struck": ("被撞后继续移动", "被撞开"),
}
ACROSS = "沿地面"
CAMERAS = {
    "pan_left": ("镜头向左摇", "摄像机向左转动"),
    "pan_right": ("镜头向右摇", "摄像机向右转动"),
    "tilt_up": ("镜头向上摇", "摄像机向上转动"),
    "tilt_down": ("镜头向下摇", "摄像机向下转动"),
    "dolly_in": ("镜头向前推进", "摄像机向前移动"),
    "dolly_out": ("镜头向后拉远", "摄像机向后移动"),
    "zoom_in": ("镜头变焦放大", "画面变焦放大"),
    "zoom_out": ("镜头变焦缩小", "画面变焦缩小"),
    "orbit_left": ("镜头向左环绕", "摄像机向左绕行"),
    "orbit_right": ("镜头向右环绕", "摄像机向右绕行"),
}


def clause(thing: ObjectFacts, across: bool, choose: Choose) -> str:
    """For example: "一个红色的小球体向左移动"."""
    shape, way = choose(SHAPES[thing.shape]), "右" if thing.heading[0] > 0 else "左"
    told = choose(THINGS).format(color=COLORS[thing.color], size=SIZES[thing.size], shape=shape)
    return f"{told}{ACROSS if across else ''}{choose(MOTIONS[thing.motion]).format(way=way)}"


CHINESE = Language("Chinese", clause, CAMERAS, comma="，")

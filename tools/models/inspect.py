"""Show the modules of teacher and student with their output shapes, and which outputs can be compared.

Reads the config of a distillation, or that of a student with --teacher. Output shapes are for a random image
of the config's test size. Weights are random; neither data nor checkpoints are read. --suggest prints losses
that work for the pair, as text for the config.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Import the other tools' shared code. With this file's own folder on the path, `import inspect` would import
# this file instead of Python's module.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse  # noqa: E402
import dataclasses  # noqa: E402
import json  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

from _cli import load_config, make_parser, run_tool  # noqa: E402

if TYPE_CHECKING:
    from mmengine.config import Config

    from mmkd.analysis.inspection import Inspection, Match, ModuleCall
    from mmkd.analysis.suggestion import Suggestion


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument(
        '--teacher',
        metavar='CONFIG',
        help='config of a teacher, a file or mmdet::…, instead of the teacher in the config',
    )
    parser.add_argument(
        '--depth', type=int, default=2, help='maximum depth of listed modules (default: 2)'
    )
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        metavar=('HEIGHT', 'WIDTH'),
        help="size of the image, px (default: the config's test size)",
    )
    parser.add_argument(
        '--suggest',
        action='store_true',
        help='print only losses that work for the pair',
    )
    parser.add_argument('--json', metavar='FILE', help='write the results to a JSON file too')
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    from mmengine.logging import MMLogger
    from mmengine.registry import init_default_scope

    from mmkd.analysis.inspection import image_size, inspect_detector, matches
    from mmkd.analysis.suggestion import Pair, as_config, suggest
    from mmkd.building import build_random
    from mmkd.errors import ConfigError
    from mmkd.teachers.config import config_classes
    from mmkd.teachers.config import load_config as load_teacher

    if args.depth < 1:
        raise ConfigError(f'--depth: must be at least 1, got {args.depth}')
    if args.size and min(args.size) < 32:
        raise ConfigError(f'--size: must be at least 32 px each, got {args.size}')
    if args.json and not Path(args.json).absolute().parent.is_dir():
        raise ConfigError(f'--json: no such folder: {Path(args.json).parent}; name another file')
    cfg = load_config(args, modes=())
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    MMLogger.get_current_instance().setLevel('ERROR')
    size = tuple(args.size) if args.size else image_size(cfg)
    distils = cfg.model.get('type') == 'Distiller'
    key, config = ('model.student', cfg.model.student) if distils else ('model', cfg.model)
    student = inspect_detector(build_random(config, key), size)
    named = args.teacher or ((cfg.model.get('teacher') or {}).get('config') if distils else None)
    if named is None:
        if args.suggest:
            raise ConfigError('--suggest: needs a teacher; name its config with --teacher')
        report(args, cfg, student, None, [], None)
        return
    theirs = load_teacher(named, 'teacher')
    scope = theirs.get('default_scope') or 'mmdet'
    teacher = inspect_detector(build_random(theirs.model, 'teacher.config', scope), size)
    suggestion = None
    if args.suggest:
        known = (config_classes(cfg), config_classes(theirs))
        class_map = cfg.model.get('class_map') if distils else None
        suggestion = suggest(Pair(student, teacher, (config, theirs.model), known, class_map))
        for group, why in suggestion.refused.items():
            print(f'# No loss on {group}: {" ".join(why.split())}')
        if not suggestion.losses:
            raise ConfigError('--suggest: no loss works for this pair; see docs/methods.md')
        print(as_config(suggestion))
    report(args, cfg, student, teacher, matches(student, teacher), suggestion)


def report(
    args: argparse.Namespace,
    cfg: Config,
    student: Inspection,
    teacher: Inspection | None,
    found: list[Match],
    suggestion: Suggestion | None,
) -> None:
    """Print the modules, the feature maps of both, and the losses; write them to the JSON file."""
    from mmkd.analysis.inspection import up_to_depth

    sides = {'student': student} | ({'teacher': teacher} if teacher else {})
    losses = declared(cfg, sides)
    if not args.suggest:
        for name, each in sides.items():
            height, width = each.size
            print(f'{name}: {type(each.model).__name__}, images of {height} x {width} px\n')
            print('\n'.join(table(list(up_to_depth(each.modules, args.depth)))))
            if each.idle:
                print(f'not called: {", ".join(each.idle)}')
            print()
        if teacher:
            print('\n'.join(['feature maps of both', '', *map(line_of, found), '']))
        if losses:
            print('\n'.join(['losses', '', *map(loss_line, losses)]))
    if args.json:
        content: dict[str, Any] = {
            name: dict(
                detector=type(each.model).__name__,
                size=each.size,
                modules=[dataclasses.asdict(it) for it in each.modules],
                not_called=each.idle,
            )
            for name, each in sides.items()
        }
        content.update(feature_maps=[dataclasses.asdict(each) for each in found], losses=losses)
        if suggestion:
            content.update(suggested=suggestion.losses, refused=suggestion.refused)
        Path(args.json).write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')


def table(modules: list[ModuleCall]) -> list[str]:
    """One line per module: path, class, parameters, their fraction, shapes and strides."""
    first = max((len(each.path) for each in modules), default=0) + 2
    kind = max((len(each.kind) for each in modules), default=0) + 2
    return [
        f'{each.path:<{first}}{each.kind:<{kind}}{each.parameters / 1e6:>8.2f} M{each.share:>7.1%}  '
        f'{outputs(each)}'
        for each in modules
    ]


def outputs(module: ModuleCall, limit: int = 6) -> str:
    """The output shapes of a module, with the strides of feature maps."""
    texts = [
        f'{"x".join(map(str, shape))}{f" /{stride:g}" if stride else ""}'
        for shape, stride in zip(module.shapes, module.strides, strict=True)
    ]
    more = f', … ({len(texts)} in total)' if len(texts) > limit else ''
    return f'{", ".join(texts[:limit])}{more}'


def line_of(match: Match) -> str:
    """One line for a pair of modules: whether their maps can be compared, and how."""
    names = match.student if match.student == match.teacher else f'{match.student}, {match.teacher}'
    if match.problem:
        return f'{names}: {match.problem}'
    how = 'the same channels'
    if match.connector:
        items = ', '.join(f'{key}={value!r}' for key, value in match.connector.items())
        how = f'connector=dict({items})'
    return f'{names}: {match.levels} levels of the same size; {how}'


def declared(cfg: Config, sides: dict[str, Inspection]) -> list[dict[str, Any]]:
    """The losses of the config with the outputs that they record, and the shapes of these outputs."""
    from mmkd.distillers import LossEntry
    from mmkd.errors import UserError
    from mmkd.families import family_of

    found = []
    for name, config in (cfg.model.get('losses') or {}).items():
        if not config or 'teacher' not in sides:
            continue
        line: dict[str, Any] = dict(name=name, type=config.get('type'))
        try:
            entry = LossEntry(name, config)
            student, teacher = (sides[side].model for side in ('student', 'teacher'))
            options = dict(family_of(teacher).options, scale=1.0)
            (teacher_name,) = list(entry.aligns)[:1]
            entry.check(student, teacher, options, teacher_name)
            for side in ('student', 'teacher'):
                source = getattr(entry, side)
                call = sides[side][source.module]
                line[side] = str(source)
                line[f'{side}_shapes'] = call.shapes if call else None
            line['align'] = type(entry.align).__name__
            line['connector'] = type(entry.connectors.get('student', None)).__name__
            if not entry.connectors:
                line['connector'] = None
        except UserError as error:
            line['problem'] = str(error)
        found.append(line)
    return found


def loss_line(loss: dict[str, Any]) -> str:
    """One line for a loss of the config: its outputs and its alignment, or its error."""
    if 'problem' in loss:
        return loss['problem']
    sides = ', '.join(f'{side} {loss[side]}' for side in ('student', 'teacher'))
    connector = f', through {loss["connector"]}' if loss['connector'] else ''
    return f'{loss["name"]}: {loss["type"]} of {sides}, paired by {loss["align"]}{connector}'


if __name__ == '__main__':
    run_tool(main, parse_args())

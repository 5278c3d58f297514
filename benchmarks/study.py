"""What a study asks for: a teacher, recipes and seeds, and the config of each training."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from held_out import hold_out

if TYPE_CHECKING:
    from mmengine.config import Config

HERE = Path(__file__).resolve().parent
TEACHER, BASELINE = 'teacher', 'baseline'
# What a config says about this machine, or about where a run lies, is no part of the experiment.
PLACES = ('work_dir', 'data_root', 'log_level', 'launcher', 'resume', 'load_from')


@dataclass
class Run:
    """One training of a study.

    Args:
        recipe: ``teacher``, ``baseline`` or the recipe's name.
        seed: Seed of the training.
        config: Its whole config.
        folder: Its work directory.
        digest: Hash of all that makes the experiment, from which the same run is recognised.
    """

    recipe: str
    seed: int
    config: Config
    folder: Path
    digest: str


class Study:
    """A study file, and where its runs lie.

    Args:
        path: The file.
        work_dir: Folder of all studies' trainings.

    Raises:
        UserError: The file is not there or lacks something.
    """

    def __init__(self, path: Path, work_dir: Path) -> None:
        from mmengine.config import Config

        from mmkd.errors import ConfigError

        self.name, self.file = path.stem, path
        self.settings = Config.fromfile(str(path))
        absent = [key for key in ('teacher', 'recipes', 'seeds') if key not in self.settings]
        if absent or BASELINE not in self.settings.recipes:
            raise ConfigError(f'{path}: {", ".join(absent) or "recipes.baseline"} not given')
        self.folder = work_dir / self.name
        self._runs: dict[tuple[str, int], Run] = {}
        self._files: dict[str, Config] = {}

    def data_root(self) -> str | None:
        """Where the study's data lies; drawn first if it is to be drawn."""
        drawn = self.settings.get('drawn_scenes')
        if drawn is None:
            return self.settings.get('data_root')
        from _synthetic_scenes import SceneSettings, prepare_scenes

        folder = self.folder / 'data'
        prepare_scenes(folder, SceneSettings(**drawn))
        return f'{folder}/'

    @property
    def given(self) -> Path | None:
        """The checkpoint of a teacher that is not trained here."""
        checkpoint = self.settings.teacher.get('checkpoint')
        return None if checkpoint is None else Path(checkpoint)

    def teacher(self) -> Run:
        settings = self.settings.teacher
        known = [settings.sha256] if self.given else []
        return self._once(TEACHER, settings.get('seed', 0), settings, {}, *known)

    def runs(self, recipes: list[str] | None, seeds: list[int] | None) -> list[Run]:
        """The runs asked for, seed by seed, so that an interrupted study can be compared too.

        Raises:
            ConfigError: The study has no such recipe.
        """
        from mmkd.errors import ConfigError, did_you_mean

        known = self.settings.recipes
        for name in recipes or ():
            if name not in known:
                raise ConfigError(f"{self.file} has no recipe '{name}'{did_you_mean(name, known)}")
        teacher = self.teacher()
        own_config = str(teacher.folder / 'config.py')
        taught = {
            'model.teacher.checkpoint': str(self.given or last_checkpoint(teacher)),
            'model.teacher.config': self.settings.teacher.get('whole', own_config),
        }
        return [
            self._once(name, seed, known[name], taught, teacher.digest)
            for seed in seeds or self.settings.seeds
            for name in recipes or known
        ]

    def _once(self, recipe: str, seed: int, *given: Any) -> Run:
        """The run; its config takes a second to build."""
        key = recipe, seed
        if key not in self._runs:
            self._runs[key] = self._run(recipe, seed, *given)
        return self._runs[key]

    def _run(
        self, recipe: str, seed: int, settings: Any, taught: dict[str, str], *digests: str
    ) -> Run:
        from mmengine.config import Config

        from mmkd.analysis.work_dir import comparable_config
        from mmkd.datasets.data_root import replace_data_root
        from mmkd.hooks import add_distillation_hook

        root = HERE.parent
        file = str(root / settings.config)
        if file not in self._files:
            self._files[file] = Config.fromfile(file)
        cfg = copy.deepcopy(self._files[file])
        options = dict(self.settings.get('options') or {})
        options.update(settings.get('options') or {})
        cfg.merge_from_dict(copy.deepcopy(options))  # mmengine takes _delete_ out of them
        cfg.merge_from_dict({'randomness.seed': seed})
        cfg.merge_from_dict({'val_evaluator.type': 'CocoF1Metric'})
        cfg.setdefault('custom_imports', dict(imports=['mmkd'], allow_failed_imports=False))
        if cfg.model.get('losses'):  # as digests have it since the first results
            add_distillation_hook(cfg)
        distils = cfg.model.type == 'Distiller'
        whole = cfg.to_dict()
        for teacher in (
            whole['model'].get('teacher'),
            *whole['model'].get('teachers', {}).values(),
        ):
            if teacher and 'checkpoint' in teacher and 'config' in teacher:
                del teacher['checkpoint'], teacher['config']  # its digest says what it is
        content = comparable_config(whole, PLACES, cfg.get('data_root'))
        content = comparable_config(content, (), f'{weights_folder()}/')
        content = [content, *digests * (distils or recipe == TEACHER)]
        content += ['cached'] if settings.get('cached') else []
        held_out = self.settings.get('held_out')
        content += [f'{held_out} held out'] if held_out else []
        drawn = json.dumps((self.settings.get('drawn_scenes') or {}), sort_keys=True)
        digest = _digest(json.dumps(content, sort_keys=True) + drawn)
        data = self.folder / 'data' if 'drawn_scenes' in self.settings else None
        data = f'{data}/' if data else self.settings.get('data_root')
        if data:
            replace_data_root(cfg, data)
        if distils:
            cfg.merge_from_dict(taught)
        if held_out and Path(cfg.get('data_root') or '').is_dir():
            hold_out(cfg, held_out, self.folder / 'held_out')
        folder = self.folder / f'{recipe}_seed{seed}_{digest}'
        cfg.work_dir = str(folder)
        if settings.get('cached'):
            said = json.dumps([_what_is_read(content[0]), *content[1:]], sort_keys=True)
            name = f'cache_{_digest(said + drawn)}'
            cfg.merge_from_dict({'model.teacher.cache': str(self.folder / name)})
        return Run(recipe, seed, cfg, folder, digest)


def _what_is_read(config: dict[str, Any]) -> Any:
    """The parts of a config by which a cache differs: seeds, students and loss functions share one."""
    model, data = config['model'], config['train_dataloader']['dataset']
    return dict(
        teacher=model['teacher'],
        reads=[
            (loss.get('teacher'), loss.get('align')) for loss in model['losses'].values() if loss
        ],
        data={key: value for key, value in data.items() if key != 'pipeline'},
        view=config['test_dataloader'],
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def weights_folder() -> str:
    """Where weights lie that studies start from, as configs have it."""
    return os.environ.get('MMKD_WEIGHTS', 'weights').rstrip('/')


def last_checkpoint(run: Run) -> Path:
    """The checkpoint that a finished training of ``run`` leaves behind."""
    cfg = run.config.train_cfg
    name = f'epoch_{cfg.max_epochs}.pth' if cfg.get('max_epochs') else f'iter_{cfg.max_iters}.pth'
    return run.folder / name


def find_study(name: str) -> Path:
    """The file of a study.

    Raises:
        MissingFileError: There is none of that name.
    """
    from mmkd.errors import MissingFileError

    known = sorted((HERE / 'studies').glob('**/*.py'))
    for path in (Path(name), *known):
        if path.is_file() and (path == Path(name) or path.stem == name):
            return path
    raise MissingFileError(
        f'no study {name}; there are {", ".join(path.stem for path in known)} in {HERE / "studies"}'
    )

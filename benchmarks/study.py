"""A study: a teacher, recipes and seeds, and the config of each training run."""

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
# Config keys about this machine, or about where files are stored. They are not part of the experiment.
LOCAL_KEYS = ('work_dir', 'data_root', 'log_level', 'launcher', 'resume', 'load_from')


@dataclass
class Run:
    """A training run of a study.

    Args:
        recipe: ``teacher``, ``baseline`` or the recipe's name.
        seed: Seed of the run.
        config: The whole config.
        folder: The work directory.
        digest: Hash of everything that defines the experiment. Equal digest and seed mean the same run.
    """

    recipe: str
    seed: int
    config: Config
    folder: Path
    digest: str


class Study:
    """A study file, and the folders of its runs.

    Args:
        path: The file.
        work_dir: Folder of the training runs of all studies.

    Raises:
        UserError: The file does not exist or lacks a setting.
    """

    def __init__(self, path: Path, work_dir: Path) -> None:
        from mmengine.config import Config

        from mmkd.errors import ConfigError

        self.name, self.file = path.stem, path
        self.settings = Config.fromfile(str(path))
        absent = [key for key in ('teacher', 'recipes', 'seeds') if key not in self.settings]
        if absent or BASELINE not in self.settings.recipes:
            raise ConfigError(
                f'{path}: must define teacher, seeds, recipes and recipes.baseline; missing: '
                f'{", ".join(absent) or "recipes.baseline"}'
            )
        self.folder = work_dir / self.name
        self._runs: dict[tuple[str, int], Run] = {}
        self._configs: dict[str, Config] = {}

    def data_root(self) -> str | None:
        """The folder of the study's data. Synthetic images are generated first."""
        scenes = self.settings.get('drawn_scenes')
        if scenes is None:
            return self.settings.get('data_root')
        from _synthetic_scenes import SceneSettings, prepare_scenes

        folder = self.folder / 'data'
        prepare_scenes(folder, SceneSettings(**scenes))
        return f'{folder}/'

    @property
    def given_checkpoint(self) -> Path | None:
        """The checkpoint of a teacher that the study does not train itself, or None."""
        checkpoint = self.settings.teacher.get('checkpoint')
        return None if checkpoint is None else Path(checkpoint)

    def teacher(self) -> Run:
        """The run of the teacher."""
        settings = self.settings.teacher
        checksums = [settings.sha256] if self.given_checkpoint else []
        return self._get_run(TEACHER, settings.get('seed', 0), settings, {}, *checksums)

    def runs(self, recipes: list[str] | None, seeds: list[int] | None) -> list[Run]:
        """The runs of some recipes and seeds. Default: all.

        The order is seed by seed: after an interrupt, finished seeds of all recipes can be compared.

        Raises:
            ConfigError: The study has no recipe of this name.
        """
        from mmkd.errors import ConfigError, did_you_mean

        known = self.settings.recipes
        for name in recipes or ():
            if name not in known:
                raise ConfigError(f"{self.file}: no recipe '{name}'{did_you_mean(name, known)}")
        teacher = self.teacher()
        own_config = str(teacher.folder / 'config.py')
        teacher_options = {
            'model.teacher.checkpoint': str(self.given_checkpoint or last_checkpoint(teacher)),
            'model.teacher.config': self.settings.teacher.get('whole', own_config),
        }
        return [
            self._get_run(name, seed, known[name], teacher_options, teacher.digest)
            for seed in seeds or self.settings.seeds
            for name in recipes or known
        ]

    def _get_run(self, recipe: str, seed: int, *arguments: Any) -> Run:
        """Build a run once: its config takes a second to build."""
        key = recipe, seed
        if key not in self._runs:
            self._runs[key] = self._build_run(recipe, seed, *arguments)
        return self._runs[key]

    def _build_run(
        self, recipe: str, seed: int, settings: Any, teacher_options: dict[str, str], *digests: str
    ) -> Run:
        from mmengine.config import Config

        from mmkd.analysis.work_dir import comparable_config
        from mmkd.datasets.data_root import replace_data_root
        from mmkd.hooks import add_distillation_hook

        root = HERE.parent
        file = str(root / settings.config)
        if file not in self._configs:
            self._configs[file] = Config.fromfile(file)
        cfg = copy.deepcopy(self._configs[file])
        options = dict(self.settings.get('options') or {})
        options.update(settings.get('options') or {})
        # A copy, because mmengine removes _delete_ from its argument.
        cfg.merge_from_dict(copy.deepcopy(options))
        cfg.merge_from_dict({'randomness.seed': seed})
        cfg.merge_from_dict({'val_evaluator.type': 'CocoF1Metric'})
        cfg.setdefault('custom_imports', dict(imports=['mmkd'], allow_failed_imports=False))
        if cfg.model.get('losses'):  # the digests of the first results include the hook
            add_distillation_hook(cfg)
        distils = cfg.model.type == 'Distiller'
        resolved = cfg.to_dict()
        for teacher in (
            resolved['model'].get('teacher'),
            *resolved['model'].get('teachers', {}).values(),
        ):
            if teacher and 'checkpoint' in teacher and 'config' in teacher:
                del teacher['checkpoint'], teacher['config']  # the teacher's digest replaces them
        content = comparable_config(resolved, LOCAL_KEYS, cfg.get('data_root'))
        content = comparable_config(content, (), f'{weights_folder()}/')
        content = [content, *digests * (distils or recipe == TEACHER)]
        content += ['cached'] if settings.get('cached') else []
        held_out = self.settings.get('held_out')
        content += [f'{held_out} held out'] if held_out else []
        scenes = json.dumps((self.settings.get('drawn_scenes') or {}), sort_keys=True)
        digest = _digest(json.dumps(content, sort_keys=True) + scenes)
        data = self.folder / 'data' if 'drawn_scenes' in self.settings else None
        data = f'{data}/' if data else self.settings.get('data_root')
        if data:
            replace_data_root(cfg, data)
        if distils:
            cfg.merge_from_dict(teacher_options)
        if held_out and Path(cfg.get('data_root') or '').is_dir():
            hold_out(cfg, held_out, self.folder / 'held_out')
        folder = self.folder / f'{recipe}_seed{seed}_{digest}'
        cfg.work_dir = str(folder)
        if settings.get('cached'):
            cached = json.dumps([_cache_inputs(content[0]), *content[1:]], sort_keys=True)
            name = f'cache_{_digest(cached + scenes)}'
            cfg.merge_from_dict({'model.teacher.cache': str(self.folder / name)})
        return Run(recipe, seed, cfg, folder, digest)


def _cache_inputs(config: dict[str, Any]) -> Any:
    """The parts of a config that determine a cache. Seed, student and loss functions do not."""
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
    """The folder of the weights that studies start from, as configs contain it."""
    return os.environ.get('MMKD_WEIGHTS', 'weights').rstrip('/')


def last_checkpoint(run: Run) -> Path:
    """The checkpoint of the last epoch or iteration of a run."""
    cfg = run.config.train_cfg
    name = f'epoch_{cfg.max_epochs}.pth' if cfg.get('max_epochs') else f'iter_{cfg.max_iters}.pth'
    return run.folder / name


def find_study(name: str) -> Path:
    """The file of a study.

    Args:
        name: A file, or the name of a study in benchmarks/studies/.

    Raises:
        MissingFileError: No file and no study has this name.
    """
    from mmkd.errors import MissingFileError

    known = sorted((HERE / 'studies').glob('**/*.py'))
    for path in (Path(name), *known):
        if path.is_file() and (path == Path(name) or path.stem == name):
            return path
    raise MissingFileError(
        f'STUDY: must be a file or the name of a study in {HERE / "studies"} '
        f'({", ".join(path.stem for path in known)}), got {name}'
    )

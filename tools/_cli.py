"""Shared code of the command-line tools: options, device, loading a config, one-line errors.

torch and the OpenMMLab packages are imported inside functions, as mmengine selects its device during the
import, so the device option must be read first.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib.util
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.runner import Runner


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the argument ``config`` and the options that all tools with a config share."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument('config', help='a config file, the name of a config of mmkd, or mmdet::…')
    parser.add_argument(
        '--work-dir', help='folder for logs and results (default: work_dirs/<config name>)'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action='extend',
        metavar='KEY=VALUE',
        help='change config entries: optim_wrapper.optimizer.lr=0.01, data_root=PATH/ '
        '(for all data sets), key="[a,b]" for a list',
    )
    parser.add_argument(
        '--device', choices=['cpu', 'cuda'], help='device to use (default: cuda if available)'
    )
    parser.add_argument(
        '--gpus',
        type=int,
        help='number of GPUs; 0 is the same as --device cpu, more than 1 needs --launcher',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument(
        '--debug', action='store_true', help='show tracebacks of errors (same as MMKD_DEBUG=1)'
    )
    return parser


def add_run_options(parser: argparse.ArgumentParser, out: str) -> None:
    """Add the arguments of all tools that draw work directories.

    Args:
        parser: The parser of the tool.
        out: Default path of the figure.
    """
    parser.add_argument(
        'work_dirs', nargs='+', metavar='WORK_DIR', help='work directories of training runs'
    )
    parser.add_argument(
        '--names', nargs='+', metavar='NAME', help='titles (default: the names of the folders)'
    )
    parser.add_argument('--out', default=out, metavar='FILE', help=f'the PNG file (default: {out})')
    parser.add_argument('--json', metavar='FILE', help='write the numbers to a JSON file too')
    parser.add_argument('--debug', action='store_true', help='show tracebacks of errors')
    parser.add_argument(
        '--device', choices=['cpu', 'cuda'], help='device to use (default: cuda if available)'
    )
    parser.set_defaults(gpus=None, local_rank=0)


def run_tool(main: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Select the device, import mmkd, run ``main``.

    A :class:`mmkd.errors.UserError` ends the process with one line on stderr and exit code 2. Any other
    exception keeps its traceback.
    """
    debug = args.debug or os.environ.get('MMKD_DEBUG', '0') not in ('', '0')
    try:
        _choose_device(args)
        _import_quietly()
        main(args)
    except Exception as error:
        message = None if debug else one_line(error)
        if message is None:
            raise
        if os.environ.get('LOCAL_RANK', '0') == '0':
            print(f'mmkd: error: {message}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        if debug:
            raise
        print('mmkd: interrupted', file=sys.stderr)
        sys.exit(130)


def _import_quietly() -> None:
    """Import mmkd, which registers its modules, also for plain mmdet configs.

    Notes of mmdet and mmpretrain about unused optional packages are suppressed.
    """
    warnings.filterwarnings('ignore', message='faster_coco_eval is not installed')
    warnings.filterwarnings('ignore', category=FutureWarning)
    warnings.filterwarnings('ignore', message='torch.meshgrid')  # raised by mmdet's anchors
    with redirect_stdout(StringIO()):
        import mmkd  # noqa: F401


def one_line(error: BaseException) -> str | None:
    """The message of a ``UserError`` as one line; None for any other exception.

    Registries wrap an error in another exception that quotes it, so wrapped exceptions are searched too. An
    unexpected exception that was raised while a ``UserError`` was handled does not count.
    """
    # Looked up, not imported: if the OpenMMLab stack is missing, `import mmkd` itself has failed.
    errors = sys.modules.get('mmkd.errors')
    seen: list[BaseException] = []  # chains of causes may be circular
    while errors is not None and error is not None and error not in seen:
        seen.append(error)
        wrapped = error.__cause__ or error.__context__
        if isinstance(wrapped, errors.UserError) and str(wrapped) in str(error):
            error = wrapped
            continue
        if isinstance(error, errors.UserError):
            text = str(error)
            if 'Traceback (most recent call last)' in text:  # re-raised from a data loader worker
                text = text.strip().splitlines()[-1].split(': ', 1)[-1]
            return ' '.join(text.split())
        error = error.__cause__
    return None


def load_config(args: argparse.Namespace, modes: tuple[str, ...]) -> Config:
    """Load the config, apply the shared options and check the run.

    ``modes`` are the data loaders that the tool runs: ``'train'``, ``'val'``, ``'test'``. Without any,
    nothing is checked.
    """
    from mmkd.hooks import add_hooks
    from mmkd.preflight import PlannedRun, require

    if args.launcher != 'none':
        _read_launcher(args.launcher)
    path = find_config(args.config)
    cfg = read_config(path, args)
    cfg.launcher = args.launcher
    # Priority: the command line, then the config, then the name of the config.
    if args.work_dir is not None or cfg.get('work_dir') is None:
        cfg.work_dir = args.work_dir or os.path.join('work_dirs', path.stem)
    if modes:
        require(PlannedRun(cfg, modes, path=args.config), warn)
    add_hooks(cfg)
    if args.launcher != 'none':
        _join_cpu_group(cfg)
    return cfg


def read_config(path: Path, args: argparse.Namespace) -> Config:
    """The config with the changes of ``--cfg-options``."""
    from mmkd.datasets.data_root import replace_data_root
    from mmkd.teachers.config import read_file

    cfg = read_file(str(path), 'config')
    options = _parse_options(args.cfg_options)
    if 'data_root' in options:
        # Before the merge, so that options of single data loaders override it.
        replace_data_root(cfg, options['data_root'])
    cfg.merge_from_dict(options)
    cfg.setdefault('default_scope', 'mmdet')  # without it mmengine finds no module of a detector
    return cfg


def warn(message: str) -> None:
    """Print a warning, only in the first process of a run."""
    if os.environ.get('LOCAL_RANK', '0') == '0':
        print(f'mmkd: warning: {message}', file=sys.stderr, flush=True)


def find_config(name: str) -> Path:
    """The config file ``name``, or the config of mmkd with that file name.

    ``mmdet::retinanet/retinanet_r50_fpn_1x_coco.py`` is a config of mmdet, as in mmengine.

    Raises:
        MissingFileError: The config does not exist; the message suggests similar names.
        ConfigError: Several configs of mmkd have that name.
    """
    from mmkd.errors import ConfigError, MissingFileError

    if os.path.isfile(name):
        return Path(name)
    if '::' in name:
        package, _, inner = name.partition('::')
        spec = importlib.util.find_spec(package)
        roots = spec.submodule_search_locations if spec else None
        path = Path((roots or [''])[0]) / '.mim/configs' / inner
        if not roots or not path.is_file():
            raise MissingFileError(
                f'config: {name} not found, {package} has no such config; name another'
            )
        return path
    folder = Path(__file__).resolve().parent.parent / 'configs'
    known = sorted(folder.rglob('*.py'))
    found = [config for config in known if config.name == os.path.basename(name)]
    if len(found) > 1:
        raise ConfigError(
            f'config: several configs are named {name}; name one of {", ".join(map(str, found))}'
        )
    if not found:
        near = difflib.get_close_matches(os.path.basename(name), [config.name for config in known])
        hint = (
            f'did you mean {" or ".join(near)}?' if near else f'the configs of mmkd are in {folder}'
        )
        raise MissingFileError(f'config: no such file: {name}; {hint}')
    print(f'mmkd: no file {name} in this folder, using {found[0]}', flush=True)
    return found[0]


def build_runner(cfg: Config) -> Runner:
    """The runner of a loaded config, of the type ``runner_type`` if the config has it."""
    from mmdet.utils import setup_cache_size_limit_of_dynamo
    from mmengine.registry import RUNNERS
    from mmengine.runner import Runner

    from mmkd.checkpoints import allow_training_checkpoints
    from mmkd.errors import ConfigError

    try:
        os.makedirs(cfg.work_dir, exist_ok=True)
        if not os.access(cfg.work_dir, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ConfigError(
            f'work_dir: {cfg.work_dir} is not writable ({error.strerror}); name another with --work-dir'
        ) from None
    allow_training_checkpoints()
    setup_cache_size_limit_of_dynamo()

    class ToolRunner(Runner):
        """mmengine's Runner, which writes what hides all else on the terminal only into the log file."""

        def build_logger(self, *args: Any, **kwargs: Any) -> Any:
            logger = super().build_logger(*args, **kwargs)
            for handler in logger.handlers:
                if not isinstance(handler, logging.FileHandler):
                    handler.addFilter(lambda record: not is_for_the_file(str(record.msg)))
            return logger

    if 'runner_type' not in cfg:
        return ToolRunner.from_cfg(cfg)
    # mmengine's FlexibleRunner requires it; its Runner has this default.
    cfg.setdefault('env_cfg', dict(dist_cfg=dict(backend='nccl')))
    return RUNNERS.build(cfg)


def is_for_the_file(message: str) -> bool:
    """Whether a message is left out of the console: the config, and the options of each parameter."""
    return message.startswith(('Config:\n', 'paramwise_options -- ')) or message.endswith(
        'is duplicate. It is skipped since bypass_duplicate=True'
    )


def _choose_device(args: argparse.Namespace) -> None:
    if getattr(args, 'launcher', 'none') in ('none', 'pytorch'):  # others have other variables
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    if args.device == 'cpu' or args.gpus == 0:
        os.environ['CUDA_VISIBLE_DEVICES'] = '-1'
        return
    if args.device == 'cuda' or (args.gpus or 0) > 1:
        from mmkd.errors import ConfigError

        if args.launcher == 'none' and (args.gpus or 0) > 1:
            raise ConfigError(
                f'--gpus: {args.gpus} GPUs need one process per GPU; run tools/dist_train.sh or '
                'tools/dist_test.sh, or add --launcher pytorch to the mim command'
            )
        import torch

        if not torch.cuda.is_available():
            raise ConfigError(
                '--device: torch finds no CUDA device; remove --device cuda or use --device cpu'
            )


def _parse_options(options: list[str] | None) -> dict:
    from mmengine.config import DictAction

    from mmkd.errors import ConfigError

    for option in options or []:
        if '=' not in option:
            raise ConfigError(f'--cfg-options: must be KEY=VALUE, got {option!r}')
    parser = argparse.ArgumentParser()
    parser.add_argument('--options', nargs='*', action=DictAction, default={})
    return parser.parse_args(['--options', *(options or [])]).options


def _join_cpu_group(cfg: Config) -> None:
    """Set up several processes without CUDA, which mmengine's launcher code requires."""
    import torch
    from torch import distributed

    if torch.cuda.is_available():
        return
    if not distributed.is_initialized():
        distributed.init_process_group('gloo')
    fit_to_cpu(cfg)


def fit_to_cpu(cfg: Config) -> None:
    """Configure the DDP wrappers of a model for the CPU, as mmengine would pass a CUDA device to them."""
    parallel = dict(type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None)
    if cfg.get('runner_type') != 'FlexibleRunner':
        wrapper = dict(
            parallel, find_unused_parameters=cfg.get('find_unused_parameters', False)
        )  # as mmengine's default wrapper
        cfg.model_wrapper_cfg = wrapper | (cfg.get('model_wrapper_cfg') or {})
        return
    strategy = cfg.setdefault('strategy', dict(type='DDPStrategy'))
    if strategy.type == 'DDPStrategy':
        strategy.model_wrapper = parallel | (strategy.get('model_wrapper') or {})


# Environment variables that launchers set in each process.
LAUNCHERS = dict(
    pytorch=dict(rank='RANK', world='WORLD_SIZE', local='LOCAL_RANK'),
    mpi=dict(
        rank='OMPI_COMM_WORLD_RANK',
        world='OMPI_COMM_WORLD_SIZE',
        local='OMPI_COMM_WORLD_LOCAL_RANK',
    ),
    slurm=dict(rank='SLURM_PROCID', world='SLURM_NTASKS', local='SLURM_LOCALID'),
)
START_COMMANDS = dict(
    pytorch='torchrun --nproc-per-node=PROCESSES tools/train.py CONFIG --launcher pytorch',
    mpi='mpirun -np PROCESSES -x MASTER_ADDR python tools/train.py CONFIG --launcher mpi',
    slurm='srun --ntasks=PROCESSES python tools/train.py CONFIG --launcher slurm',
)


def _read_launcher(launcher: str) -> None:
    """Copy the variables of a launcher to those that torch and mmengine read.

    Raises:
        ConfigError: This process was not started by the launcher.
    """
    from mmkd.errors import ConfigError

    names = LAUNCHERS[launcher]
    absent = [name for name in names.values() if name not in os.environ]
    if launcher == 'mpi' and 'MASTER_ADDR' not in os.environ:
        absent.append('MASTER_ADDR (address of the first machine; 127.0.0.1 for a single machine)')
    if launcher == 'slurm' and not {'MASTER_ADDR', 'SLURM_NODELIST'} & os.environ.keys():
        absent.append('SLURM_NODELIST')
    if absent:
        raise ConfigError(
            f'--launcher {launcher}: the environment lacks {", ".join(absent)}; start with '
            f'`{START_COMMANDS[launcher]}`'
        )
    if launcher == 'pytorch':
        return
    os.environ.update(
        RANK=os.environ[names['rank']],
        WORLD_SIZE=os.environ[names['world']],
        LOCAL_RANK=os.environ[names['local']],
    )
    os.environ.setdefault('MASTER_PORT', '29500')  # the default of torch and mmengine
    if 'MASTER_ADDR' not in os.environ:
        nodes = os.environ['SLURM_NODELIST']
        command = ['scontrol', 'show', 'hostnames', nodes]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        os.environ['MASTER_ADDR'] = found[0]

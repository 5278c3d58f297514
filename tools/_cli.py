"""What the command-line tools share: options, device, loading a config, errors in one line.

torch and the OpenMMLab packages are imported inside the functions: mmengine picks its device while
it is being imported, so the device option has to be read before that.
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
    """A parser with the config and the options that every tool on a config has."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument(
        'config', help='config file, the name of one that comes with mmkd, or mmdet::…'
    )
    parser.add_argument(
        '--work-dir', help='where logs and results go (default: work_dirs/<config name>)'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action='extend',
        metavar='KEY=VALUE',
        help='change config entries: optim_wrapper.optimizer.lr=0.01, data_root=PATH/ '
        '(which reaches every dataset), key="[a,b]" for a list',
    )
    parser.add_argument(
        '--device', choices=['cpu', 'cuda'], help='default: cuda where there is one'
    )
    parser.add_argument(
        '--gpus', type=int, help='0 is the same as --device cpu; more than 1 needs --launcher'
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument(
        '--debug', action='store_true', help='show tracebacks of errors (so does MMKD_DEBUG=1)'
    )
    return parser


def add_run_options(parser: argparse.ArgumentParser, out: str) -> None:
    """The arguments of every tool that draws work directories.

    Args:
        parser: Of the tool.
        out: Where it writes its figure by default.
    """
    parser.add_argument(
        'work_dirs', nargs='+', metavar='WORK_DIR', help='as a training run left it'
    )
    parser.add_argument('--names', nargs='+', metavar='NAME', help="titles instead of the folders'")
    parser.add_argument('--out', default=out, metavar='FILE', help=f'the PNG file (default: {out})')
    parser.add_argument('--json', metavar='FILE', help='write the numbers to a JSON file too')
    parser.add_argument('--debug', action='store_true', help='show tracebacks of errors')
    parser.add_argument(
        '--device', choices=['cpu', 'cuda'], help='default: cuda where there is one'
    )
    parser.set_defaults(gpus=None, local_rank=0)


def run_tool(main: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Choose the device, import mmkd, run ``main``.

    A fault the user can mend ends the process with one line on stderr and exit code 2; any other
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
    """Import mmkd, which registers its modules, so that plain mmdet configs may name them too.

    mmdet and mmpretrain print and warn of optional packages that nothing here uses.
    """
    warnings.filterwarnings('ignore', message='faster_coco_eval is not installed')
    warnings.filterwarnings('ignore', category=FutureWarning)
    warnings.filterwarnings('ignore', message='torch.meshgrid')  # of mmdet's anchors
    with redirect_stdout(StringIO()):
        import mmkd  # noqa: F401


def one_line(error: BaseException) -> str | None:
    """The message of a user's fault as one line; None for an unexpected exception.

    A registry wraps the fault in another exception that quotes it, so that is searched too. An unexpected
    exception raised while a fault was handled is not the user's.
    """
    # Looked up, not imported: when the stack is missing `import mmkd` itself is what failed.
    errors = sys.modules.get('mmkd.errors')
    seen: list[BaseException] = []  # a cause may be its own effect
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
    """Load the config, apply the options all tools share and check that its files exist.

    ``modes`` are the data loaders the tool runs: ``'train'``, ``'val'``, ``'test'``.
    """
    from mmkd.hooks import add_hooks
    from mmkd.preflight import PlannedRun, require

    if args.launcher != 'none':
        _read_launcher(args.launcher)
    path = find_config(args.config)
    cfg = read_config(path, args)
    cfg.launcher = args.launcher
    # In this order: the command line, the config, the config's name.
    if args.work_dir is not None or cfg.get('work_dir') is None:
        cfg.work_dir = args.work_dir or os.path.join('work_dirs', path.stem)
    if modes:
        require(PlannedRun(cfg, modes, path=args.config), warn)
    add_hooks(cfg)
    if args.launcher != 'none':
        _join_cpu_group(cfg)
    return cfg


def read_config(path: Path, args: argparse.Namespace) -> Config:
    """The config with the changes of the command line."""
    from mmkd.datasets.data_root import replace_data_root
    from mmkd.teachers.config import read_file

    cfg = read_file(str(path), 'config')
    options = _parse_options(args.cfg_options)
    if 'data_root' in options:
        # Before the merge, so that an option on a single data loader still has the last word.
        replace_data_root(cfg, options['data_root'])
    cfg.merge_from_dict(options)
    cfg.setdefault('default_scope', 'mmdet')  # without it mmengine finds no part of a detector
    return cfg


def warn(message: str) -> None:
    """Print advice, once for all processes of a run."""
    if os.environ.get('LOCAL_RANK', '0') == '0':
        print(f'mmkd: warning: {message}', file=sys.stderr, flush=True)


def find_config(name: str) -> Path:
    """The config file ``name``, or the only one of that name among those that come with mmkd.

    ``mmdet::retinanet/retinanet_r50_fpn_1x_coco.py`` names one that comes with mmdet, as in mmengine.

    Raises:
        MissingFileError: there is none; the message offers close names.
        ConfigError: there are several.
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
            raise MissingFileError(f'config file not found: {name}; {package} has no such config')
        return path
    folder = Path(__file__).resolve().parent.parent / 'configs'
    known = sorted(folder.rglob('*.py'))
    found = [config for config in known if config.name == os.path.basename(name)]
    if len(found) > 1:
        raise ConfigError(f'{name}: several configs have that name: {", ".join(map(str, found))}')
    if not found:
        near = difflib.get_close_matches(os.path.basename(name), [config.name for config in known])
        hint = (
            f'did you mean {" or ".join(near)}?' if near else f"mmkd's own configs are in {folder}"
        )
        raise MissingFileError(f'config file not found: {name}; {hint}')
    print(f'mmkd: {name} is not a file here, using {found[0]}', flush=True)
    return found[0]


def build_runner(cfg: Config) -> Runner:
    """The runner of a loaded config, the config's own type if it names one."""
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
            f'work_dir: {cfg.work_dir} cannot be written to ({error.strerror}); name another with --work-dir'
        ) from None
    allow_training_checkpoints()
    setup_cache_size_limit_of_dynamo()

    class ToolRunner(Runner):
        """mmengine's, but what hides all else that is printed goes into the log file alone."""

        def build_logger(self, *args: Any, **kwargs: Any) -> Any:
            logger = super().build_logger(*args, **kwargs)
            for handler in logger.handlers:
                if not isinstance(handler, logging.FileHandler):
                    handler.addFilter(lambda record: not is_for_the_file(str(record.msg)))
            return logger

    if 'runner_type' not in cfg:
        return ToolRunner.from_cfg(cfg)
    # mmengine's FlexibleRunner does not do without, as its Runner does.
    cfg.setdefault('env_cfg', dict(dist_cfg=dict(backend='nccl')))
    return RUNNERS.build(cfg)


def is_for_the_file(message: str) -> bool:
    """Whether a message is left out of the console: the config, and the options of each parameter."""
    return message.startswith(('Config:\n', 'paramwise_options -- ')) or message.endswith(
        'is duplicate. It is skipped since bypass_duplicate=True'
    )


def _choose_device(args: argparse.Namespace) -> None:
    if getattr(args, 'launcher', 'none') in ('none', 'pytorch'):  # the others name it otherwise
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    if args.device == 'cpu' or args.gpus == 0:
        os.environ['CUDA_VISIBLE_DEVICES'] = '-1'
        return
    if args.device == 'cuda' or (args.gpus or 0) > 1:
        from mmkd.errors import ConfigError

        if args.launcher == 'none' and (args.gpus or 0) > 1:
            raise ConfigError(
                f'--gpus {args.gpus} needs one process for each GPU: run tools/dist_train.sh or '
                'tools/dist_test.sh, or add --launcher pytorch to the mim command'
            )
        import torch

        if not torch.cuda.is_available():
            raise ConfigError(
                'torch finds no CUDA device; leave out --device cuda or use --device cpu'
            )


def _parse_options(options: list[str] | None) -> dict:
    from mmengine.config import DictAction

    from mmkd.errors import ConfigError

    for option in options or []:
        if '=' not in option:
            raise ConfigError(f'--cfg-options takes KEY=VALUE, got {option!r}')
    parser = argparse.ArgumentParser()
    parser.add_argument('--options', nargs='*', action=DictAction, default={})
    return parser.parse_args(['--options', *(options or [])]).options


def _join_cpu_group(cfg: Config) -> None:
    """Let several processes train without CUDA, which mmengine's own launcher code asks for."""
    import torch
    from torch import distributed

    if torch.cuda.is_available():
        return
    if not distributed.is_initialized():
        distributed.init_process_group('gloo')
    fit_to_cpu(cfg)


def fit_to_cpu(cfg: Config) -> None:
    """Let no wrapper of a model be told the CUDA device that mmengine would name."""
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


# What launchers tell each process.
LAUNCHERS = dict(
    pytorch=dict(rank='RANK', world='WORLD_SIZE', local='LOCAL_RANK'),
    mpi=dict(
        rank='OMPI_COMM_WORLD_RANK',
        world='OMPI_COMM_WORLD_SIZE',
        local='OMPI_COMM_WORLD_LOCAL_RANK',
    ),
    slurm=dict(rank='SLURM_PROCID', world='SLURM_NTASKS', local='SLURM_LOCALID'),
)
STARTS = dict(
    pytorch='torchrun --nproc-per-node=PROCESSES tools/train.py CONFIG --launcher pytorch',
    mpi='mpirun -np PROCESSES -x MASTER_ADDR python tools/train.py CONFIG --launcher mpi',
    slurm='srun --ntasks=PROCESSES python tools/train.py CONFIG --launcher slurm',
)


def _read_launcher(launcher: str) -> None:
    """Write what a launcher tells this process into the variables that torch and mmengine read.

    Raises:
        ConfigError: This process was not started by it.
    """
    from mmkd.errors import ConfigError

    names = LAUNCHERS[launcher]
    absent = [name for name in names.values() if name not in os.environ]
    if launcher == 'mpi' and 'MASTER_ADDR' not in os.environ:
        absent.append('MASTER_ADDR (the first machine, 127.0.0.1 if there is one)')
    if launcher == 'slurm' and not {'MASTER_ADDR', 'SLURM_NODELIST'} & os.environ.keys():
        absent.append('SLURM_NODELIST')
    if absent:
        raise ConfigError(
            f'--launcher {launcher}: the environment lacks {", ".join(absent)}; start it by '
            f'`{STARTS[launcher]}`'
        )
    if launcher == 'pytorch':
        return
    os.environ.update(
        RANK=os.environ[names['rank']],
        WORLD_SIZE=os.environ[names['world']],
        LOCAL_RANK=os.environ[names['local']],
    )
    os.environ.setdefault('MASTER_PORT', '29500')  # torch's and mmengine's default
    if 'MASTER_ADDR' not in os.environ:
        nodes = os.environ['SLURM_NODELIST']
        command = ['scontrol', 'show', 'hostnames', nodes]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        os.environ['MASTER_ADDR'] = found[0]

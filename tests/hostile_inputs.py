"""The corpus of hostile inputs, and the process that gives them to the program under a watch.

``python hostile_inputs.py FOLDER [every]`` prints a JSON line for each input: what the program answered, and what the
watch saw. Nothing of an input may run: each would write a canary file, and an audit hook sees what Python does.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import itertools
import json
import os
import pickle
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from healsg.runs import checkpoint

CANARY = "the_canary"
TOUCH = f"touch {CANARY}"
CODE = f"open('{CANARY}', 'w').close()"
PLANTED = f"{CODE}\nfrom torch.nn import Linear, Module\nfrom torch.optim import SGD\nclass Part(Module): pass\n"

# --- _target_: what a configuration might call ------------------------------------------------------------------------

COMMANDS = """
    os.system os.popen os.execv os.spawnl os.posix_spawn posix.system nt.system subprocess.Popen
    subprocess.run subprocess.call subprocess.check_output subprocess.getoutput pty.spawn commands.getoutput
    asyncio.create_subprocess_shell asyncio.subprocess.create_subprocess_shell multiprocessing.Process
    multiprocessing.util.spawnv_passfds webbrowser.open platform.os.system logging.os.system
    pathlib.os.system shutil.os.system os.path.os.system glob.os.system tempfile._os.system
    random._os.system
"""
PYTHON = """
    builtins.eval builtins.exec builtins.compile builtins.open builtins.__import__ builtins.getattr
    builtins.setattr builtins.breakpoint builtins.input builtins.type builtins.vars __builtin__.eval
    __builtins__.eval eval exec open importlib.import_module importlib.reload
    importlib.util.spec_from_file_location runpy.run_path runpy.run_module runpy._run_code
    code.InteractiveInterpreter code.interact codeop.compile_command timeit.timeit cProfile.run profile.run
    pdb.run pdb.Pdb._getval bdb.Bdb.run trace.Trace.run doctest.debug_script types.CodeType
    types.FunctionType types.ModuleType inspect.currentframe gc.get_objects sys.modules sys.settrace
    sys.exit os._exit os.abort atexit.register threading.Thread concurrent.futures.ThreadPoolExecutor
    signal.signal weakref.finalize ctypes.CDLL ctypes.cdll.LoadLibrary imp.load_source zipimport.zipimporter
    pkgutil.get_loader pydoc.locate pydoc.importfile site.addsitedir
"""
FILES = """
    pickle.load pickle.loads pickle.Unpickler _pickle.loads marshal.loads shelve.open dill.loads joblib.load
    yaml.load yaml.unsafe_load yaml.full_load numpy.load numpy.lib.npyio.load numpy.fromfile numpy.memmap
    pandas.read_pickle pathlib.Path pathlib.Path.unlink os.remove os.rename os.chmod shutil.rmtree
    shutil.copy shutil.unpack_archive tarfile.open zipfile.ZipFile tempfile.NamedTemporaryFile
    logging.FileHandler logging.config.fileConfig sqlite3.connect socket.socket socket.create_connection
    urllib.request.urlopen http.server.HTTPServer xmlrpc.client.ServerProxy smtplib.SMTP ftplib.FTP
"""
DOORS = """
    torch.hub.load torch.hub.load_state_dict_from_url torch.hub.download_url_to_file torch.load torch.save
    torch.serialization.load torch.serialization.add_safe_globals torch.jit.load torch.jit.script
    torch.package.PackageImporter torch.utils.cpp_extension.load torch.utils.cpp_extension.load_inline
    torch.ops.load_library torch.classes.load_library torch._ops.ops.load_library
    torch.utils.model_zoo.load_url torch.utils.data.DataLoader torch.utils.data.Dataset
    torch.utils.collect_env.run torch.utils.tensorboard.SummaryWriter torch.distributed.init_process_group
    torch.export.load torch.distributed.run.main torch.multiprocessing.spawn torch.fx.GraphModule
    torch.fx.graph_module.reduce_graph_module torch._dynamo.optimize
    torch._inductor.codecache.PyCodeCache.load torch.compile torch.Tensor torch.nn torch.nn.Modul
    torch.UntypedStorage.from_file torch.from_file torch.cuda.memory._load_snapshot
    torch.utils._config_module.ConfigModule functools.partial functools.partialmethod functools.reduce
    operator.attrgetter operator.methodcaller operator.call itertools.starmap itertools.accumulate
    collections.defaultdict contextlib.ExitStack copy.deepcopy copyreg.__newobj__ hydra.utils.instantiate
    hydra.utils.call hydra.utils.get_method hydra.utils.get_class hydra.utils.get_object
    hydra.utils.get_static_method hydra.main hydra.initialize hydra._internal.utils._locate
    hydra._internal.target_policy.UNCONTROLLED_EXECUTION_TARGETS.discard
    hydra._internal.instantiate._instantiate2.instantiate omegaconf.OmegaConf.load
    omegaconf.OmegaConf.register_new_resolver wandb.init tensorboard.program.TensorBoard
    sklearn.datasets.load_files sklearn.datasets.fetch_openml PIL.Image.open torchvision.io.read_file
    torchvision.datasets.CIFAR10 torchvision.datasets.DatasetFolder torchvision.datasets.utils.download_url
    torchvision.datasets.utils.extract_archive torchvision.ops.Conv2dNormActivation
    numpy.f2py.crackfortran.myeval numpy.testing._private.utils.runstring
    numpy.distutils.exec_command.exec_command numpy.vectorize
"""
CHAINS = """
    torch.nn.functional.torch.hub.load torch.nn.functional.importlib.import_module
    torch.nn.modules.module.torch.load torch.nn.modules.module.functools.partial
    torch.nn.modules.module.warnings.sys.modules torch.nn.modules.os.system
    torch.optim.optimizer.functools.partial torch.optim.optimizer.torch.load
    torch.optim.lr_scheduler.partial torch.optim.swa_utils.deepcopy torch.optim.adam.torch.hub.load
    torch.optim.lr_scheduler.types.FunctionType torch.nn.Module.load_state_dict
    torch.nn.Module.register_forward_hook torch.nn.Module.__subclasses__
    torch.nn.Module.__init__.__globals__ torch.nn.Linear.forward.__globals__.get
    torch.nn.parallel.DistributedDataParallel torch.nn.parallel.DataParallel
    torch.nn.utils.parametrize.register_parametrization torch.nn.utils.stateless.functional_call
    torch.nn.utils.skip_init torch.nn.utils.weight_norm torch.nn.attention._fa4.importlib.import_module
    torch.nn.attention._registry.FlashAttentionHandle torch.nn.attention.activate_flash_attention_impl
    torch.nn.cpp.ModuleWrapper torch.nn.cpp.OrderedDictWrapper torch.nn.modules._functions.SyncBatchNorm
    torch.nn.init.normal_ torch.nn.functional.relu torch.nn.modules.lazy.itertools.accumulate
    torch.nn.modules.container.OrderedDict torch.nn.modules.loss.Callable torch.nn.quantized.Linear
    torch.nn.backends.thnn torch.nn.common_types.Tensor torchvision.models._api.get_model
    torchvision.models.get_model torchvision.models.get_weight torchvision.models.list_models
    torchvision.models.get_model_weights torchvision.models.Weights torchvision.models.WeightsEnum
    torchvision.models._api.importlib.import_module torchvision.models._api.load_state_dict_from_url
    torchvision.models._api._get_enum_from_fn torchvision.models._utils.IntermediateLayerGetter
    torchvision.models.resnet.partial torchvision.models.resnet._resnet
    torchvision.models.resnet.ResNet18_Weights.IMAGENET1K_V1.get_state_dict
    torchvision.models.ResNet18_Weights.verify torchvision.models.resnet.ResNet.load_state_dict
    torchvision.models.feature_extraction.create_feature_extractor
    torchvision.models.feature_extraction.re.compile torchvision.models.densenet.load_state_dict_from_url
    torchvision.models.detection.torchvision.io.read_file torchvision.transforms.functional.crop
    torchvision.transforms.transforms.torch.load torchvision.transforms._pil_constants
    torchvision.transforms.transforms.numbers.Number torchvision.transforms.v2.functional.to_image
    torchvision.transforms.v2.functional._utils._register_kernel_internal
    torchvision.transforms.v2._utils.Callable torchvision.transforms.v2._augment.warnings.warn
    torchvision.torch.load torchvision._internally_replaced_utils.find_module healsg.build.build_task
    healsg.build.make healsg.config.schema.import_module healsg.cli.main healsg.runs.checkpoint.load
    healsg.data.torch.load healsg.task.BasicTask.build healsg.runner.TaskRunner.fit
    healsg.loggers.client.subprocess.Popen healsg.loggers.wandb.serve_wandb healsg.loggers.wandb._Client
    healsg.loggers.report.write_report healsg.runs.acquire.subprocess.run healsg.datasets.published.files.load_arrays
    healsg.datasets.published.archives.unpack healsg.datasets.published.archives.tarfile.open healsg.runs.redact.config
    healsg.datasets.published.files._ArrayUnpickler healsg.models.torchvision.models.get_model
    healsg.models.torchvision.set_apart healsg.config.targets.importlib.util.spec_from_file_location
    healsg.runs.folder.write_text healsg.trainer.TaskTrainer.train
"""
SPELLED = [
    *(
        "",
        ".",
        "os..system",
        ".os.system",
        "os.system.",
        " os.system",
        "os.system ",
        "os .system",
        "os.system\n",
        "os:system",
    ),
    *(
        "os/system",
        "os.system()",
        "os.system('id')",
        "os\x00.system",
        "оs.system",
        "os.sуstem",
        "ｏs.system",
        "os.\u200bsystem",
    ),
    *("torch.nn.Lineаr", "ｔorch.nn.Linear", "torch.nn.class", "torch.nn.1x", "torch.nn.__builtins__", "__main__.CODE"),
    *(
        "torch.nn.Linear\u202e",
        "ℴs.system",
        "TORCH.NN.LINEAR",
        "torch.nn.Linear.__class__",
        "lambda: 0",
        "[os.system]",
        "-os.x",
    ),
    *(
        "../../evil.Part",
        "/tmp/evil.Part",
        "evil.py",
        "file:evil.Part",
        "http://evil.Part",
        "${oc.env:HOME}.x",
        "%s.%s",
        "a" * 5000,
    ),
]
OTHER_TYPES: list[Any] = [None, 3, 1.5, True, [], ["os.system"], {}, {"_target_": "os.system"}, ["torch.nn.Linear"]]
TARGETS = [*f"{COMMANDS} {PYTHON} {FILES} {DOORS} {CHAINS}".split(), *SPELLED, *OTHER_TYPES]

PLACES = (
    *(
        "data",
        "model",
        "method",
        "task",
        "runner",
        "method.optimizer",
        "method.scheduler",
        "runner.callbacks.x",
        "logger.x",
    ),
    *(
        "args.x",
        "data.x",
        "wandb.x",
        "recipe.x",
        "init_from",
        "seed",
        "model.width",
        "args.deep.er.and.deeper",
        "hydra",
    ),
)
GIVEN = {"command": TOUCH, "cmd": TOUCH, "source": CODE, "path": CANARY, "file": CANARY, "_partial_": False}
"""Arguments with which many of them would do harm."""


def call(*args: Any, target: Any = "os.system", **more: Any) -> dict[str, Any]:
    return {"_target_": target, **({"_args_": list(args)} if args else {}), **more}


LINEAR = {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1}
NODES: dict[str, Any] = {
    "args": call(TOUCH),
    "partial": call(TOUCH, _partial_=True),
    "not recursive": call(TOUCH, _recursive_=False),
    "converted": call(TOUCH, _convert_="object"),
    "positional of a part": {"_target_": "torch.nn.Linear", "_args_": [1, 1]},
    "positional of nothing": {"_target_": "torch.nn.Linear", "_args_": None, "in_features": 1, "out_features": 1},
    "inside a part": {**LINEAR, "bias": call(TOUCH)},
    "inside a list": [1, [2, call(TOUCH)]],
    "inside a mapping": {"a": {"b": {"c": call(TOUCH)}}},
    "inside a part's mapping": {"_target_": "torch.nn.ModuleDict", "modules": {"x": call(TOUCH)}},
    "inside a part's list": {"_target_": "torch.nn.ModuleList", "modules": [LINEAR, call(TOUCH)]},
    "a partial of a partial": call(call(TOUCH, _partial_=True), target="functools.partial"),
    "a function of a transform": {"_target_": "torchvision.transforms.Lambda", "lambd": call(TOUCH, _partial_=True)},
    "a lambda by eval": {"_target_": "torchvision.transforms.Lambda", "lambd": call(CODE, target="builtins.eval")},
    "a schedule's function": {
        "_target_": "torch.optim.lr_scheduler.LambdaLR",
        "lr_lambda": call(target="os.system", _partial_=True),
    },
    "an activation": {
        "_target_": "torch.nn.TransformerEncoderLayer",
        "d_model": 8,
        "nhead": 1,
        "activation": call(TOUCH),
    },
    "a norm layer": {"_target_": "torchvision.models.resnet18", "norm_layer": call(TOUCH, _partial_=True)},
    "weights of a builder": {"_target_": "torchvision.models.resnet18", "weights": call("x", target="torch.load")},
    "a wrapped module": {"_target_": "torch.nn.cpp.ModuleWrapper", "cpp_module": LINEAR},
    "an average's function": {
        "_target_": "torch.optim.swa_utils.AveragedModel",
        "model": LINEAR,
        "avg_fn": call(TOUCH),
    },
    "a target of a target": {"_target_": {"_target_": "os.system", "command": TOUCH}},
    "a list of targets": {"_target_": ["os.system", TOUCH]},
    "discard, then call": {"a": call("os.system", target="hydra._internal.target_policy.X.discard"), "b": call(TOUCH)},
    "get, then call": {"_target_": {"_target_": "hydra.utils.get_method", "path": "os.system"}, "command": TOUCH},
    "instantiate": call(
        {"_target_": "os.system", "command": TOUCH}, target="hydra.utils.instantiate", _recursive_=False
    ),
    "recursive is a text": {**LINEAR, "_recursive_": "false"},
    "partial is a number": {**LINEAR, "_partial_": 1},
    "converted to something": {**LINEAR, "_convert_": "pickle"},
    "a private argument": {**LINEAR, "__class__": "os.system"},
    "an argument that is none": {**LINEAR, "forward": "os.system"},
}

# --- YAML: what the file of a run might hold --------------------------------------------------------------------------

TAGS = {
    "apply": f"!!python/object/apply:os.system ['{TOUCH}']",
    "apply with keywords": f"!!python/object/apply:subprocess.Popen {{args: ['{TOUCH}'], kwds: {{shell: true}}}}",
    "new": f"!!python/object/new:os.system ['{TOUCH}']",
    "object": "!!python/object:subprocess.Popen {}",
    "name": "!!python/name:os.system",
    "module": "!!python/module:os",
    "module planted": "!!python/module:planted",
    "tuple": "!!python/tuple [1, 2]",
    "eval": f'!!python/object/apply:builtins.eval ["{CODE}"]',
    "exec": f'!!python/object/apply:builtins.exec ["{CODE}"]',
    "long tag": f"!<tag:yaml.org,2002:python/object/apply:os.system> ['{TOUCH}']",
    "bytes": "!!python/bytes aGk=",
    "state": "!!python/object/new:type {args: [z, !!python/tuple [], {extend: !!python/name:exec}], listitems: 'x'}",
    "binary": "!!binary aGFybQ==",
    "date": "2020-01-01",
    "broken date": "2020-99-99",
    "set": "!!set {a, b}",
    "pairs": "!!omap [a: 1]",
    "unknown": "!thing {a: 1}",
    "class": "!healsg.task.BasicTask {}",
    "keys that are lists": "{[1, 2]: 3}",
    "a key that is null": "{null: 3}",
    "hexadecimal without end": "0x" + "f" * 50_000,
    "base sixty without end": ":".join(["59"] * 20_000),
}
LAUGHS = "a0: &a0 [lol, lol]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
WHOLE = {
    "billion laughs": LAUGHS,
    "billion laughs of mappings": "a0: &a0 {x: 1}\n"
    + "".join(f"a{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}}}\n" for i in range(1, 60)),
    "merged laughs": "a0: &a0 {x: 1}\n"
    + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 30)),
    "itself": "a: &a [*a]",
    "its own mapping": "&a {a: *a}",
    "one alias": "a: &a {x: 1}\nb: *a",
    "a hundred thousand lists": "a: " + "[" * 100_000,
    "a thousand lists": "a: " + "[" * 1000 + "]" * 1000,
    "a thousand indents": "".join(" " * i + f"a{i}:\n" for i in range(400)),
    "large": "a: " + "b" * (1 << 20),
    "many values": "a: [" + "1," * 100_000 + "]",
    "two documents": "a: 1\n---\nb: 2",
    "a list": "[1, 2]",
    "a text": "os.system",
    "nothing": "",
    "a null byte": "a: \0",
    "not UTF-8": "a: \udcff\udcfe",
    "broken": "a: [1, 2",
    "an anchor of nothing": "a: *nothing",
    "a tag of the whole": f"!!python/object/apply:os.system ['{TOUCH}']",
}
INTERPOLATIONS = [
    *("${oc.env:HOME}", "${oc.env:HOME,x}", "${oc.decode:${oc.env:HOME}}", "${oc.create:{_target_:os.system}}"),
    *("${oc.select:seed}", "${oc.dict.keys:data}", "${oc.dict.values:data}", "${oc.deprecated:seed}"),
    *("${hydra:runtime.cwd}", "${hydra:job.name}", "${now:%Y}", "${seed}", "${..seed}", "${data.root}"),
    *("${${oc.env:HOME}}", "x${oc.env:HOME}y", "${python_version:}", "${eval:1}", "${oc.eval:1}"),
    *("${os.system:id}", "${a:b:c}", "$${seed}", "\\${seed}", "\\\\${oc.env:HOME}", "${", "${}", "${oc.env:"),
    *("${oc.env:HOME",),
]

# --- pickles: what the file of a checkpoint might hold ----------------------------------------------------------------

GADGETS: list[tuple[str, str, tuple[Any, ...]]] = [
    ("os", "system", (TOUCH,)),
    ("posix", "system", (TOUCH,)),
    ("nt", "system", (TOUCH,)),
    ("os", "popen", (TOUCH,)),
    ("os", "execl", ("/bin/sh", "sh", "-c", TOUCH)),
    ("subprocess", "Popen", (["touch", CANARY],)),
    ("subprocess", "run", (["touch", CANARY],)),
    ("subprocess", "check_output", (["touch", CANARY],)),
    ("subprocess", "getoutput", (TOUCH,)),
    ("pty", "spawn", (["touch", CANARY],)),
    ("builtins", "eval", (CODE,)),
    ("builtins", "exec", (CODE,)),
    ("builtins", "compile", (CODE, "x", "exec")),
    ("builtins", "open", (CANARY, "w")),
    ("builtins", "__import__", ("planted",)),
    ("builtins", "getattr", ("x", "format")),
    ("builtins", "breakpoint", ()),
    ("__builtin__", "eval", (CODE,)),
    ("__builtin__", "execfile", ("planted.py",)),
    ("functools", "partial", (TOUCH,)),
    ("functools", "reduce", (TOUCH, [1])),
    ("operator", "attrgetter", ("system",)),
    ("operator", "methodcaller", ("system", TOUCH)),
    ("codecs", "decode", ("x", "rot13")),
    ("_codecs", "lookup", ("planted",)),
    ("importlib", "import_module", ("planted",)),
    ("runpy", "run_path", ("planted.py",)),
    ("runpy", "_run_code", (CODE, {})),
    ("code", "interact", ()),
    ("timeit", "timeit", (CODE,)),
    ("cProfile", "run", (CODE,)),
    ("profile", "run", (CODE,)),
    ("pdb", "run", (CODE,)),
    ("bdb", "Bdb", ()),
    ("trace", "Trace", ()),
    ("doctest", "debug_script", (CODE,)),
    ("pydoc", "locate", ("planted.Part",)),
    ("pickle", "loads", (pickle.dumps(1),)),
    ("_pickle", "loads", (pickle.dumps(1),)),
    ("marshal", "loads", (b"N",)),
    ("types", "CodeType", ()),
    ("types", "FunctionType", ()),
    ("shutil", "rmtree", ("precious",)),
    ("os", "remove", ("precious/file",)),
    ("webbrowser", "open", ("http://127.0.0.1:9/",)),
    ("socket", "create_connection", (("127.0.0.1", 9),)),
    ("urllib.request", "urlopen", ("http://127.0.0.1:9/",)),
    ("ctypes", "CDLL", ("libm.so.6",)),
    ("logging.config", "listen", ()),
    ("pip", "main", (["install", "x"],)),
    ("lib2to3.pgen2.grammar", "Grammar.loadPickle", ("planted",)),
    ("multiprocessing.util", "spawnv_passfds", (b"/bin/touch", [b"touch", CANARY.encode()], ())),
    ("torch", "load", (CANARY,)),
    ("torch.hub", "load", (".", "planted")),
    ("torch.serialization", "load", (CANARY,)),
    ("torch.serialization", "add_safe_globals", (["x"],)),
    ("torch.jit", "load", (CANARY,)),
    ("torch.package", "PackageImporter", (CANARY,)),
    ("torch.utils.cpp_extension", "load_inline", ("x", CODE)),
    ("torch.ops", "load_library", (CANARY,)),
    ("torch._utils_internal", "os.system", (TOUCH,)),
    ("torch.fx.graph_module", "reduce_graph_module", ({"_code": CODE}, CODE)),
    ("torch._dynamo.guards", "GuardBuilder.get", (CODE,)),
    ("torch._inductor.codecache", "compile_file", (CODE, "x", "y")),
    ("torch.utils.collect_env", "run", (TOUCH,)),
    ("torch.utils._config_module", "ConfigModule.load_config", (b"x",)),
    ("torch.jit.unsupported_tensor_ops", "execWrapper", (CODE, {}, {})),
    ("torch.distributed.rpc.internal", "PythonUDF", (TOUCH,)),
    ("torch.nn.modules.linear", "Linear", (1, 1)),
    ("torch.nn.modules.module", "Module", ()),
    ("numpy", "load", (CANARY, None, True)),
    ("numpy.testing._private.utils", "runstring", (CODE, {})),
    ("numpy.core.multiarray", "_reconstruct", ()),
    ("numpy.f2py.crackfortran", "myeval", (CODE,)),
    ("planted", "Part", ()),
    ("healsg.cli", "main", (["train"],)),
    ("hydra.utils", "instantiate", ({"_target_": "os.system"},)),
    ("yaml", "unsafe_load", (f"!!python/object/apply:os.system ['{TOUCH}']",)),
    ("collections", "defaultdict", (1,)),
    ("copyreg", "_reconstructor", (1, 2, 3)),
    ("weakref", "finalize", ()),
]
SEEN_WORK = (
    "os.system",
    "subprocess.Popen",
    "builtins.eval",
    "builtins.exec",
    "builtins.open",
    "runpy.run_path",
    "posix.system",
)
"""Gadgets of which it is shown that they would run, were they let."""


def arguments(values: Any) -> bytes:
    """The opcodes that put ``values`` on the stack."""
    return pickle.dumps(values, 2)[2:-1]


def reduced(module: str, name: str, args: tuple[Any, ...]) -> bytes:
    """A pickle that calls ``module.name(*args)`` and keeps the result where weights would be."""
    return b"\x80\x02}" + arguments("model") + f"c{module}\n{name}\n".encode() + arguments(args) + b"Rs."


def oddities() -> dict[str, bytes]:
    """The same by other opcodes, and pickles that break what reads them."""
    system, touch = b"cos\nsystem\n", arguments((TOUCH,))
    stacked = arguments("os") + arguments("system")
    return {
        "INST": f"(S'{TOUCH}'\nios\nsystem\n.".encode(),
        "OBJ": b"\x80\x02(" + system + arguments(TOUCH) + b"o.",
        "STACK_GLOBAL": b"\x80\x04" + stacked + b"\x93" + touch + b"R.",
        "STACK_GLOBAL dotted": b"\x80\x04" + arguments("torch") + arguments("os.system") + b"\x93" + touch + b"R.",
        "NEWOBJ": b"\x80\x02" + system + touch + b"\x81.",
        "NEWOBJ_EX": b"\x80\x04" + system + touch + b"}\x92.",
        "BUILD with a setter": b"\x80\x02ccollections\nOrderedDict\n)R}"
        + arguments("__setstate__")
        + system
        + b"sb"
        + touch
        + b"b.",
        "BUILD of a class": b"\x80\x02ctorch\nTensor\n}" + arguments("__reduce__") + system + b"sb.",
        "BUILD of slots": b"\x80\x02ccollections\nOrderedDict\n)RN}" + arguments("x") + system + b"s\x86b.",
        "EXT1": b"\x80\x02\x82\x01.",
        "EXT4": b"\x80\x02\x84\x01\x00\x00\x00.",
        "PERSID": b"P../../etc/passwd\n.",
        "BINPERSID of a text": b"\x80\x02" + arguments("os.system") + b"Q.",
        "BINPERSID of a call": b"\x80\x02" + system + touch + b"RQ.",
        "BINPERSID of a module": b"\x80\x02" + arguments(("module", "planted", "planted.py", CODE)) + b"Q.",
        "BINPERSID of a storage": b"\x80\x02" + arguments(("storage", "FloatStorage", "../../../x", "cpu", 1)) + b"Q.",
        "two pickles": pickle.dumps({}, 2) + b"\x80\x02" + system + touch + b"R.",
        "after STOP": pickle.dumps({}, 2) + system + touch + b"R.",
        "protocol 0": f"cos\nsystem\n(S'{TOUCH}'\ntR.".encode(),
        "protocol 9": b"\x80\x09" + system + touch + b"R.",
        "REDUCE of a rebuild": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + touch + b"R.",
        "REDUCE of a text": b"\x80\x02" + arguments("os.system") + touch + b"R.",
        "SETITEM of a list": b"\x80\x02]" + arguments("a") + arguments(1) + b"s.",
        "SETITEMS of a text": b"\x80\x02" + arguments("x") + b"(" + arguments("a") + arguments(1) + b"u.",
        "APPEND to a mapping": b"\x80\x02}" + arguments(1) + b"a.",
        "APPENDS to a class": b"\x80\x02ctorch\nTensor\n(" + arguments(1) + b"e.",
        "memo of nothing": b"\x80\x02h\x09.",
        "POP of nothing": b"\x80\x020.",
        "MARK of nothing": b"\x80\x02t.",
        "an endless text": b"\x80\x02X\xff\xff\xff\x7fabc.",
        "an endless number": b"\x80\x02\x8b\xff\xff\xff\x7f\x01.",
        "a negative number": b"\x80\x02\x8b\xff\xff\xff\xff\x01.",
        "endless bytes": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fx.",
        "lists in each other": b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".",
        "no STOP": b"\x80\x02}",
        "nothing": b"",
        "no pickle": b"\xff\xfe\xfd" * 30,
        "a list": pickle.dumps([1, 2], 2),
        "a text": pickle.dumps("model", 2),
        "another mapping": pickle.dumps({"nothing": 1}, 2),
        "numbers for weights": pickle.dumps({"format": 1, "model": 3, "metrics_log": 4, "runner": None}, 2),
        "texts for weights": pickle.dumps({"format": 1, "model": {"a": "b"}, "metrics_log": {}, "method": "x"}, 2),
    }


def zipped(content: bytes, **more: bytes) -> bytes:
    """An archive as ``torch.save`` writes it, around any pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        files = {"data.pkl": content, "byteorder": b"little", "version": b"3\n", **more}
        for name, inner in files.items():
            archive.writestr(f"archive/{name}", inner)
    return buffer.getvalue()


def legacy(content: bytes) -> bytes:
    """The format before archives: a magic number, a protocol, the system, then the pickle."""
    magic = 0x1950A86A20F9469CFC6C
    return b"".join(pickle.dumps(part, 2) for part in (magic, 1001, {"little_endian": True})) + content


def closed(content: bytes) -> bytes:
    """Content with a trailer that is right: hostile, but whole."""
    content += checkpoint._MAGIC
    return content + hashlib.sha256(content).digest()


def torchscript() -> bytes:
    code = f"class Model(Module):\n  def forward(self, x):\n    return ops.os.system('{TOUCH}')\n".encode()
    more = {"constants.pkl": b"\x80\x02).", "code/__torch__.py": code}
    return zipped(b"\x80\x02c__torch__\nModel\n)\x81.", **more)


def checkpoints() -> dict[str, bytes]:
    """Files that lie where a checkpoint lies; most have a right trailer."""
    made: dict[str, bytes] = {}
    for number, (module, name, args) in enumerate(GADGETS):
        content = reduced(module, name, args)
        made[f"{module}.{name}"] = closed((zipped, legacy, bytes)[(0, 0, 1, 2)[number % 4]](content))
    made |= {f"{name}, in an archive": closed(zipped(content)) for name, content in oddities().items()}
    bare = reduced("os", "system", (TOUCH,))
    made |= {f"{name}, bare": closed(content) for name, content in itertools.islice(oddities().items(), 16)}
    made |= {
        "without a trailer": zipped(bare),
        "without anything": bare,
        "with another trailer": closed(zipped(bare))[:-1] + b"x",
        "with a trailer of another format": (body := zipped(bare) + b"HEALSg-9") + hashlib.sha256(body).digest(),
        "TorchScript": closed(torchscript()),
        "TorchScript without a trailer": torchscript(),
        "a tar of old": closed(b"x" * 257 + b"ustar  \0" + bytes(512)),
        "an archive in an archive": closed(zipped(b"\x80\x02}.", **{"../../escaped": b"x", "data/0": zipped(bare)})),
        "a storage with a way out": closed(zipped(storage("../../../etc/passwd"))),
        "a storage that is not there": closed(zipped(storage("7"))),
        "a storage of another size": closed(zipped(storage("0"), **{"data/0": b"abcd"})),
        "a storage without end": closed(zipped(storage("0", 1 << 60), **{"data/0": b"abcd"})),
        "a tensor beyond its storage": closed(zipped(storage("0", 1, (1 << 40,)), **{"data/0": b"abcd"})),
        "a tensor before its storage": closed(zipped(storage("0", 1, (4,), -1), **{"data/0": b"abcd"})),
        "empty": b"",
        "a trailer alone": closed(b""),
        "a picture": closed(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13)),
    }
    return made


def storage(key: str, elements: int = 4, shape: tuple[int, ...] = (4,), offset: int = 0) -> bytes:
    """A tensor on a storage that lies under ``key``."""
    place = (
        b"("
        + arguments("storage")
        + b"ctorch\nFloatStorage\n"
        + arguments(key)
        + arguments("cpu")
        + arguments(elements)
        + b"tQ"
    )
    rest = arguments(offset) + arguments(shape) + arguments((1,)) + b"\x89ccollections\nOrderedDict\n)R"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + place + rest + b"tR"
    return b"\x80\x02}" + arguments("model") + b"}" + arguments("w") + tensor + b"ss."


# --- the watch --------------------------------------------------------------------------------------------------------


class Watch:
    """What happened while an input was read, told by Python's own audit events and by the canary file."""

    PROCESSES = (
        "os.system",
        "subprocess.Popen",
        "os.exec",
        "os.posix_spawn",
        "os.spawn",
        "pty.spawn",
        "os.fork",
        "os.startfile",
    )
    REACH = (
        "socket.connect",
        "socket.bind",
        "socket.getaddrinfo",
        "urllib.Request",
        "webbrowser.open",
        "ctypes.dlopen",
        "code.__new__",
    )
    HARM = ("shutil.rmtree", "os.remove", "os.rmdir", "os.chmod", "shutil.copyfile", "shutil.move", "pickle.find_class")

    def __init__(self, root: Path) -> None:
        self.root, self.canary, self.seen, self.on = root, root / CANARY, list[str](), False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        self.on = False
        try:
            if self._suspect(event, arguments):
                self.seen.append(f"{event}{arguments!r}"[:200])
        finally:
            self.on = True

    def _suspect(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "open":
            return CANARY in str(arguments[0]) or str(arguments[0]).endswith(("planted.py", "passwd"))
        if event == "import":
            return "planted" in str(arguments[0])
        if event in ("exec", "compile"):
            text = arguments[0] if event == "compile" else f"{arguments[0].co_filename} {arguments[0].co_consts}"
            own = event == "exec" and arguments[0].co_filename.startswith(str(self.root))
            return own or CANARY in str(text)
        if event in ("os.remove", "os.rmdir") and not str(arguments[0]).startswith("precious"):
            return False
        if event == "ctypes.dlopen" and arguments[0] == "libc.so.6":  # asked to keep freed memory, by each run on a CPU
            return False
        if event == "subprocess.Popen" and arguments[0] == "git":  # a run's record of the code that runs
            return False
        return event.startswith((*self.PROCESSES, *self.REACH, *self.HARM))

    @contextlib.contextmanager
    def over(self) -> Iterator[list[str]]:
        """Watch what is done inside; what was seen is in the list that this gives."""
        self.seen = []
        self.on = True
        try:
            yield self.seen
        finally:
            self.on = False
            if self.canary.exists():
                self.canary.unlink()
                self.seen.append("the canary")
            if not (self.root / "precious" / "file").exists():
                self.seen.append("what was precious is gone")


# --- the cases --------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """An input: how it is laid down, and the command that reads it. ``harmless``: it may be passed over unread."""

    name: str
    lay: Callable[[], object]
    line: list[str]
    harmless: bool = False


class House:
    """A folder with runs in it: one that was stopped, and one job of a sweep."""

    SAME = ("runner=debug", "quiet=true", "model.width=8")

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "precious").mkdir()
        (root / "precious" / "file").touch()
        (root / "planted.py").write_text("raise RuntimeError('planted was imported')\n")
        self.give("train", *self.SAME, "runner.max_time=0", "name=run")
        self.run, self.job = root / "runs" / "run", root / "runs" / "sweep" / "seed=0"
        (self.job / "checkpoints").mkdir(parents=True)
        (self.job / "metrics.jsonl").write_text('{"event": "step", "epoch": 1, "step": 1}\n')
        self.text = (self.run / "config.yaml").read_text()
        self.whole = (self.run / "checkpoints" / "last.pt").read_bytes()
        self.values: dict[str, Any] = yaml.safe_load(self.text)
        record = json.loads((self.run / "run.json").read_text())
        self.record = json.dumps(record | {"trained": True})  # else it would hold its name for nobody
        (self.run / "run.json").write_text(self.record)

    @staticmethod
    def give(*line: str) -> tuple[int, str]:
        """Run a command here; its status and what it said on standard error."""
        from healsg.cli import main, report
        from healsg.errors import HealsgError
        from healsg.runs import weights

        def load() -> int:
            try:
                weights.initialise(torch.nn.Linear(1, 1), Path("bare.pt"))
            except HealsgError as error:
                return report(error)
            return 0

        import torch

        told = io.StringIO()
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            status = load() if line == ("load",) else main(list(line))
        return status, told.getvalue()

    def restore(self) -> None:
        """Take away what the last input laid down."""
        for path in (self.run / "checkpoints").iterdir():
            path.unlink()
        (self.run / "checkpoints" / "last.pt").write_bytes(self.whole)
        (self.run / "config.yaml").write_text(self.text)
        (self.run / "run.json").write_text(self.record)

    def put(self, place: str, value: Any) -> str:
        """The text of a configuration that has ``value`` at a dotted place."""
        values = json.loads(json.dumps(self.values))
        node = values
        *way, last = place.split(".")
        for name in way:
            if not isinstance(node.get(name), dict):
                node[name] = {}
            node = node[name]
        node[last] = value
        return yaml.safe_dump(values)

    def replaced(self, old: str, new: str) -> str:
        assert old in self.text
        return self.text.replace(old, new, 1)

    def saved(self, text: str, way: str, name: str) -> Case:
        """A configuration of a run, read by one of the commands."""

        def lay() -> None:
            for folder in (self.run, self.job):
                (folder / "config.yaml").write_text(text, errors="surrogateescape")

        lines = {
            "eval": ["eval", "run"],
            "resume": ["resume", "run"],
            "train": ["train", *self.SAME, "name=run"],
            "sweep": ["train", "-m", *self.SAME, "name=sweep", "seed=choice(0)"],
        }
        return Case(f"{way}: {name}", lay, lines[way])

    def checkpoint(self, content: bytes, way: str, name: str) -> Case:
        """A checkpoint, read by one of the commands."""

        def lay() -> None:
            for path in (self.run / "checkpoints").iterdir():
                path.unlink()
            names = {"resume": ("last", "previous"), "train": ("previous",), "eval": ("best",), "init_from": ("best",)}
            for file in names[way]:
                (self.run / "checkpoints" / f"{file}.pt").write_bytes(content)

        lines = {
            "eval": ["eval", "run"],
            "resume": ["resume", "run", "runner.max_time=null"],
            "train": ["train", *self.SAME, "name=run"],
            "init_from": ["train", *self.SAME, "name=new", "fresh=true", "init_from=run"],
        }
        return Case(f"{way}: checkpoint: {name}", lay, lines[way])


def quoted(value: Any) -> str:
    """A value as an override takes it."""
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{quoted(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(quoted, value)) + "]"
    return json.dumps(value)


def cases(house: House, every: bool) -> Iterator[Case]:
    """The inputs: each by all commands, or a part of them by one in turn."""
    ways, step, turn = ("eval", "resume", "train", "sweep"), 1 if every else 6, itertools.count()

    def each(kinds: tuple[str, ...] = ways) -> tuple[str, ...]:
        often = ("eval", "resume", "train", "eval", "resume", "init_from", "eval", "sweep", "resume")
        often = tuple(kind for kind in often if kind in kinds)
        return kinds if every else (often[next(turn) % len(often)],)

    for number, target in itertools.islice(enumerate(TARGETS), 0, None, step):
        place = PLACES[number % len(PLACES)]
        node = {"_target_": target, **GIVEN} if number % 2 else {"_target_": target}
        free = place.split(".")[0] in ("logger", "wandb", "recipe")  # not compared when a run goes on
        for way in each(ways[:2] if free else ways):
            yield house.saved(house.put(place, node), way, f"{place}._target_={target!r:.60}")
        if number % 30 == 0 or (every and number % 2 == 0):
            line = ["train", *house.SAME, f"++{PLACES[number % 8]}={quoted({'_target_': target, **GIVEN})}"]
            yield Case(f"command line: {target!r:.60}", house.restore, line)
            yield Case(f"command line, swept: {target!r:.60}", house.restore, [*line, "-m", "seed=1,2"])
    for number, (name, node) in enumerate(NODES.items()):
        place = ("args.x", "model", "method.optimizer", "model.options", "runner.callbacks.x")[number % 5]
        for way in each():
            yield house.saved(house.put(place, node), way, name)
        if number % step == 0:
            yield Case(f"command line: {name}", house.restore, ["train", *house.SAME, f"++model={quoted(node)}"])
    for name, tag in TAGS.items():
        for way in each():
            yield house.saved(house.replaced("seed: 0", f"seed: {tag}"), way, f"tag: {name}")
    for name, text in WHOLE.items():
        for way in each():
            yield house.saved(text, way, name)
            if every and text:
                yield house.saved(house.text + text, way, f"{name}, after the rest")
    for number, text in itertools.islice(enumerate(INTERPOLATIONS), 0, None, step):
        place, value = (("data.root", text), ("args.x", [1, [text]]), ("method.optimizer.lr", text))[number % 3]
        for way in each():
            yield house.saved(house.put(place, value), way, f"interpolation: {text}")
    for name in ("a" * 3000, "a\0b", "../" * 2000, "\udcff"):
        for command in ("eval", "resume"):
            yield Case(f"{command}: a run named {name!r:.20}", house.restore, [command, name])
    yield from itertools.islice(planted(house), 0, None, step)
    yield from itertools.islice(records(house), 0, None, step)
    for number, (name, content) in itertools.islice(enumerate(checkpoints().items()), 0, None, step):
        costly = ("train", "init_from") if number % 24 == 0 else ("eval", "resume")
        for way in each(("eval", "resume", "train", "init_from") if every else costly):
            yield house.checkpoint(content, way, name)
    for name, content in checkpoints().items():
        yield Case(
            f"checkpoint.load: {name}", lambda made=content: (house.root / "bare.pt").write_bytes(made), ["load"]
        )  # type: ignore[misc]


def planted(house: House) -> Iterator[Case]:
    """Modules that lie beside the data, also such as hand on what is allowed."""

    def plant(folder: Path, *packages: Path) -> Callable[[], None]:
        def lay() -> None:
            for package in packages:
                (package / "__init__.py").write_text(PLANTED)
            (folder / "evil_planted.py").write_text(PLANTED)
            (house.run / "config.yaml").write_text(text)

        return lay

    for target in ("Part", "Linear", "SGD", "Module"):
        for place in ("args.x", "method.optimizer", "task"):
            text = house.put(place, {"_target_": f"runs.run.evil_planted.{target}"})
            for line in (["eval", "run"], ["resume", "run"]):
                name = f"{line[0]}: a module in the run's folder, {target} at {place}"
                yield Case(name, plant(house.run, house.run, house.run.parent), line)
            text = house.put(place, {"_target_": f"runs.{target}"})
            yield Case(
                f"eval: runs/ as a package, {target} at {place}", plant(house.run, house.run.parent), ["eval", "run"]
            )


def records(house: House) -> Iterator[Case]:
    """What lies beside the configuration is not read as one, and not believed."""
    hostile = {"_target_": "os.system", "_args_": [TOUCH]}

    def hydra() -> None:
        (house.run / ".hydra").mkdir(exist_ok=True)
        for name in ("config", "hydra", "overrides"):
            (house.run / ".hydra" / f"{name}.yaml").write_text(f"!!python/object/apply:os.system ['{TOUCH}']\n")

    def record(content: str) -> Callable[[], None]:
        return lambda: [(folder / "run.json").write_text(content) for folder in (house.run, house.job)] and None

    def metrics() -> None:
        (house.run / "metrics.jsonl").write_text(
            json.dumps(hostile) + "\n!!python/name:os.system\n" + "[" * 100_000 + "\n"
        )

    for line in (["eval", "run"], ["resume", "run"], ["train", *house.SAME, "name=run"]):
        yield Case(f"{line[0]}: .hydra", hydra, line, harmless=True)
        yield Case(f"{line[0]}: metrics.jsonl", metrics, line, harmless=True)
        texts = (
            json.dumps(hostile),
            "[" * 100_000,
            "!!python/name:os.system",
            json.dumps({"status": hostile, "best": [1]}),
        )
        for number, text in enumerate(texts):
            yield Case(f"{line[0]}: run.json {number}", record(text), line, harmless=True)


# --- the process ------------------------------------------------------------------------------------------------------


def deliberate(watch: Watch) -> Iterator[dict[str, Any]]:
    """The watch sees what does run, and the hostile files are alive: what reads them without care runs them."""
    import torch

    def load(content: bytes) -> None:
        with contextlib.suppress(Exception):
            torch.load(io.BytesIO(content), weights_only=False)

    def unguarded(content: bytes) -> Callable[[], None]:
        return lambda: load(content)

    things: dict[str, Callable[[], object]] = {
        f"pickle {module}.{name}": unguarded((zipped, legacy)[number % 2](reduced(module, name, args)))
        for number, (module, name, args) in enumerate(GADGETS)
        if f"{module}.{name}" in SEEN_WORK
    }
    things["YAML"] = lambda: yaml.unsafe_load(TAGS["apply"])
    things["a module"] = lambda: __import__("runs.run.evil_planted")
    for name, thing in things.items():
        with watch.over() as seen, contextlib.suppress(Exception):
            thing()
        yield {"name": name, "deliberate": True, "seen": seen}


def main(root: Path, every: bool) -> None:
    """Lay down each input, give its command, and tell what came of it."""
    import time

    os.chdir(root)
    sys.path.append(str(root))  # what is planted could be imported
    sys.path[:] = [entry for entry in sys.path if entry != str(Path(__file__).parent)]
    house, watch = House(root), Watch(root)
    house.give("eval", "run", "checkpoint=last")  # whatever is imported late
    gc.freeze()  # a sweep collects garbage after each job
    for case in cases(house, every):
        case.lay()
        status, told, began, cost = None, "", time.monotonic(), time.process_time()
        with watch.over() as seen:
            try:
                status, told = house.give(*case.line)
            except BaseException as error:
                told = f"{type(error).__name__}: {error}"[:300]
        seconds = time.monotonic() - began
        line = {
            "name": case.name,
            "status": status,
            "told": told[:2000] + told[2000:][-2000:],
            "seen": seen,
            "seconds": seconds,
            "cpu": time.process_time() - cost,
        }
        print(json.dumps(line | {"harmless": case.harmless}), flush=True)
        house.restore()
    for line in deliberate(watch):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:] == ["every"])

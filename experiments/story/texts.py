"""Writes three small corpora, one language each: python texts.py FOLDER

Short reports put together from word lists by a fixed seed: enough to show whether a model learns a
language it has never seen, in a script it has never seen, and free of anybody's rights. They are
easy text, so their bits per byte say nothing about real text in these languages.
"""
import random
import sys
from pathlib import Path

# who, what they did, to what, where, when: each list in its language's own order of a plain sentence.
LANGUAGES = {
    "indonesian": {
        "sentence": "{when} {who} {did} {what} {where}.",
        "who": "guru itu|petani tua|anak-anak|dokter muda|nelayan|tetangga kami|pedagang sayur|perawat|"
        "pengemudi bus|ibu saya|kakek|mahasiswa|tukang kayu|penulis|ketua desa|penjaga toko",
        "did": "membeli|menjual|memperbaiki|mencari|menemukan|membawa|melihat|menulis tentang|melukis|"
        "membersihkan|menyimpan|mengirim|meminjam|menghitung",
        "what": "tiga ekor ikan|sebuah perahu kecil|buku lama|sepeda merah|jaring baru|surat dari kota|"
        "payung hitam|sekarung beras|pohon mangga|lampu minyak|kunci rumah|peta pulau|dua ekor ayam|kain batik",
        "where": "di pasar pagi|di tepi sungai|di sekolah|di belakang rumah|di pelabuhan|di kaki gunung|"
        "di dekat stasiun|di balai desa|di ladang|di perpustakaan|di bawah jembatan|di kebun",
        "when": "Kemarin|Pagi ini|Tadi malam|Setiap hari Senin|Minggu lalu|Sebelum hujan|Setelah makan siang|"
        "Pada musim kemarau|Hari ini|Tahun lalu",
    },
    "arabic": {
        "sentence": "{when} {did} {who} {what} {where}.",
        "who": "المعلم|الطبيب|الفلاح|جارنا|الطالب|الصياد|النجار|الكاتب|البائع|المهندس|جدي|الحارس|السائق|الرسام",
        "did": "اشترى|باع|أصلح|وجد|حمل|رأى|رسم|نظف|حفظ|أرسل|استعار|وصف|فقد|أعاد",
        "what": "كتابا قديما|سمكة كبيرة|دراجة حمراء|رسالة طويلة|مصباحا صغيرا|مفتاح البيت|سلة من التمر|"
        "خريطة المدينة|قاربا جديدا|مظلة سوداء|كيسا من الأرز|سجادة جميلة|ساعة ذهبية",
        "where": "في السوق|عند النهر|في المدرسة|خلف البيت|في الميناء|قرب المحطة|في القرية|في الحقل|"
        "في المكتبة|تحت الجسر|في الحديقة|أمام المسجد",
        "when": "أمس|هذا الصباح|في الليل|كل يوم اثنين|في الأسبوع الماضي|قبل المطر|بعد الغداء|في الصيف|اليوم",
    },
    "chinese": {
        "sentence": "{when}{who}{where}{did}{what}。",
        "who": "老师|医生|农民|我们的邻居|学生|渔夫|木匠|作家|商人|工程师|爷爷|司机|画家|村长|护士",
        "did": "买了|卖了|修好了|找到了|带走了|看见了|画了|洗干净了|收起了|寄出了|借了|数了数|弄丢了|送还了",
        "what": "一本旧书|三条大鱼|一辆红色的自行车|一封长信|一盏小灯|房子的钥匙|一篮苹果|城市的地图|一条新船|"
        "一把黑伞|一袋大米|一块漂亮的布|两只鸡|一张桌子",
        "where": "在市场上|在河边|在学校里|在屋子后面|在码头|在车站附近|在村子里|在田里|在图书馆|在桥下|在花园里|在山脚下",
        "when": "昨天|今天早上|夜里|每个星期一|上个星期|下雨以前|午饭以后|夏天|今天|去年",
    },
}
DOCUMENTS, MIN_SENTENCES, MAX_SENTENCES = 3000, 3, 9


def document(language, rng):
    words = {part: values.split("|") for part, values in language.items() if part != "sentence"}
    # A document stays with a few people and places, so that there is something to learn beyond a sentence.
    cast = {part: rng.sample(values, 4 if part in ("who", "where", "what") else len(values)) for part, values in words.items()}
    space = "" if language is LANGUAGES["chinese"] else " "
    sentences = rng.randint(MIN_SENTENCES, MAX_SENTENCES)
    return space.join(
        language["sentence"].format(**{part: rng.choice(values) for part, values in cast.items()}) for _ in range(sentences)
    )


folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
for seed, (name, language) in enumerate(LANGUAGES.items()):
    rng = random.Random(seed)
    text = "\n\n".join(document(language, rng) for _ in range(DOCUMENTS))
    (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    print(f"{folder / name}.txt: {len(text.encode())} bytes")

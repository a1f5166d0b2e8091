"""The words of the content filter. A phrase has blanks; a star stands for any ending; plurals are made of each word.

The lists are closed and err on the side of dropping. What they lack is a reason to add a word here, never to weaken the
rule.
"""

from __future__ import annotations

MINOR = """
child children childish childlike childhood kid kiddo kiddie kiddy baby babe-in-arms infant newborn toddler minor
preschooler kindergartner preteen preteenage* teen teenage* tween tweenie adolescen* juvenile* pubescent prepubescent
prepubert* underage underaged boy girl girlie girly schoolgirl schoolboy schoolchild schoolchildren schoolkid pupil
student lolita* loli lolicon lolicon* shota shotacon* jailbait young younger youngest youngster youth youthful
daughter son grandchild grandchildren granddaughter grandson little-one little-sister little-brother little-girl
little-boy under-age under-aged pre-teen pre-teenage* pre-pubescent barely-legal sweet-sixteen first-grader
second-grader third-grader fourth-grader fifth-grader sixth-grader seventh-grader eighth-grader ninth-grader
elementary-school middle-school primary-school high-school-girl high-school-boy high-schooler kindergarten
kinder madchen maedchen junge jungen knabe saugling kleinkind jugendliche* minderjahrig* schulerin schuler tochter
enfant fillette fille garcon bebe gamine gamin adolescent* mineur mineure ecolier ecoliere lyceenne
nina nino ninita ninito chica-joven muchacha muchacho menor menores-de-edad bebe hija hijo colegiala
bambina bambino bambine bambini ragazza ragazzo ragazzina ragazzino minorenne neonata neonato
crianca menina menino garota garoto menor-de-idade filha filho
meisje meisjes jongen jongetje kleuter minderjarig* peuter
dziecko dzieci dziewczynka dziewczyna chlopiec nastolat* nieletni*
ребенок ребёнок дети детский девочка девочки мальчик подросток младенец школьница школьник малолет* несовершеннолет*
"""
"""Words for a person under eighteen."""

SEXUAL = """
sex sexy sexier sexiest sexual* sexuali* sexting sext nude nudity nudist nudism naked nakedness nsfw porn* porno*
erotic* erotica hentai ecchi lewd* lingerie topless bottomless undress* unclothed unclad disrobed breast boob nipple
areola genital* penis* phallus vagina* vulva labia buttock butt anus anal orgasm* masturbat* intercourse fetish* bdsm
bondage seduc* sensual* aroused arousing arousal bikini panties panty pantyhose underwear undies bra thong striptease
stripper upskirt cleavage horny creampie blowjob handjob rule-34 r-18 xxx* smut
no-clothes no-clothing without-clothes without-clothing without-any-clothes with-no-clothes wearing-nothing
wears-nothing bare-skin bare-chest bare-chested bare-body bare-bottom bare-breasted in-the-nude in-the-buff
skinny-dipping clothes-off taking-off-her-clothes taking-off-his-clothes explicit-content sexually
nackt* unbekleidet* sexuell* erotisch* busen brusten
nu nue nus nues denude seins erotique* sexuel* pornographi*
desnud* pechos erotico erotica senos
nudo nuda nudi seno sessual* pornografi*
pelad* nua nuas seios sexuai*
naakt* borsten seksueel
piersi seksualn*
голый голая голые голой обнажен* обнажён* порно* эротик* эротич* секс сексуальн* грудь
"""
"""Words for nakedness and sexual acts."""

MINOR_UNSPACED = """
少女 幼女 萝莉 蘿莉 儿童 兒童 小孩 孩子 女孩 男孩 未成年 小学生 小學生 中学生 中學生 女児
子供 幼児 ロリ 어린이 소녀 소년 아동 아이 미성년
"""
SEXUAL_UNSPACED = "裸 色情 情色 性交 性器 乳房 エロ ヌード ポルノ 下着 누드 알몸 나체 포르노 섹스"
"""The same where a script puts no blanks between words."""

NUMBERS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
ein eins zwei drei vier funf fuenf sechs sieben acht neun zehn elf zwolf zwoelf dreizehn vierzehn funfzehn fuenfzehn
sechzehn siebzehn
un deux trois quatre cinq huit neuf dix onze douze treize quatorze quinze seize dix-sept
dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciseis diecisiete
due tre quattro cinque sei sette otto nove dieci undici dodici tredici quattordici quindici sedici diciassette
dois quatro sete oito dez doze treze dezesseis dezessete
een twee drie vijf zes zeven negen tien twaalf dertien veertien vijftien zestien zeventien
ii iii iv vi vii viii ix xi xii xiii xiv xv xvi xvii
"""
"""Numbers below eighteen in words."""

TENS = """
twenty thirty forty fourty fifty sixty seventy eighty ninety hundred thousand million
zwanzig vingt trente quarante cinquante soixante veinte treinta cuarenta cincuenta venti trenta quaranta vinte trinta
"""
"""A number after one of these is no age below eighteen."""

OLD = """
years-old year-old years-olds year-olds yr-old yrs-old yr-olds yrs-olds yearold yearsold yearolds yrold yrsold yrolds
years-of-age year-of-age years-young year-young yo yos y-o y-os yo-s y-old yr-o months-old month-old mo-old
months-of-age weeks-old week-old days-old day-old st-birthday nd-birthday rd-birthday th-birthday
jahre-alt jahre-jung jahr-alt jahrig jahrige jahriger jahriges jahrigen jahrigem jaehrig jaehrige jaehriger jaehriges
jaar jaar-oud jarige ans an-et-demi anos anitos anni anno lat letni letnia лет года год летняя летний летней
"""
"""What stands behind an age,"""

OLD_UNSPACED = "岁 歳 歲 才 살 세"
"""and where a script puts no blanks between words."""

AGED = """
age aged ages age-of aged-about aged-only aged-just aged-around aged-between at-age turning younger-than alter age-de
agee-de edad-de
"""
"""What stands before an age."""

UNDER = "under below younger-than less-than under-the-age-of not-yet u"
"""What makes eighteen an age below eighteen."""

FILLERS = """
a an the of and with very little cute hot pretty small one two photo picture image portrait emoji art
anime cartoon woman man female male person body figure full blonde
"""
"""Words that may stand beside others in words run together."""
